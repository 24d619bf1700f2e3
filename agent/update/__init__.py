"""How a vehicle gets from one version of the agent to the next, whatever happens in between.

    /opt/driveway/<version>/   versions, whole; dpkg stages one more (systemd/package)
    /opt/driveway/current      the version that runs
    /opt/driveway/good         the version that has proven itself, which the update program runs from
    /var/lib/driveway-update/  the program's journal: where it is, and what became of each version

    waiting     a newer version is there and whole; the daemon holds back new work and says when it may be switched
    switching   the daemon stops, `current` leads to the new version, the daemon starts
    trial       READY, `driveway doctor`, a worker's golden vector, and a lease or the time for one
    committed   `good` leads to it too
    rolled back anything else: `current` leads to `good` again, and this version is not tried any more

Two links and one file are all that is ever changed, each by an atomic rename that is synced before the next step. So
the power may go at any moment: `current` leads to one of two whole versions, and the journal says which one is meant
(`agent.update.machine`). The program is not the daemon, since the daemon is what is replaced and has no right to /opt;
it runs as root, from `good`, with the standard library alone.
"""
