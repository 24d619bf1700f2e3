#!/bin/sh
# In the vehicle: puts what the simulated car sends (candump lines on a virtio-serial port) on the buses, at once.
# canplayer ends when nobody is connected at the other end; then it is started again.
while :; do
	canplayer -t vcan0=vcan0 vcan1=vcan1 vcan2=vcan2 </dev/virtio-ports/frames.0
	sleep 2
done
