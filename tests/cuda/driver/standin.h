// A CUDA driver without a GPU: what the parts of the stand-in share.
//
// The stand-in is a `libcuda.so.1` that does on the host what a device would do: memory is host memory between guard
// zones, a stream is a thread that works off a queue, a captured stream keeps its operations for later, and a kernel is
// a function of a library in which the same CUDA source was compiled for the host. So that a fault of the caller shows,
// it is strict where a real driver is lax, and late where a real device may be late: nothing that was put on a stream
// is done when the call returns. Every other entry point of the driver API exists and says CUDA_ERROR_NOT_SUPPORTED.
//
// What it does not model: speed, occupancy, caches, the memory model between threads, more than one device, kernels
// that run at the same time (one runs at a time), and streams that join a capture.
#pragma once
#include <cuda.h>
#include <cudaProfiler.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace standin {

// ---- settings and the record of calls (record.cpp) ------------------------------------------------------------------

// "The Nth call (or kernel) from now on gives this code": N counts from when the settings were read.
struct Rule {
    std::string name;
    long nth = 1;
    bool onwards = false;  // every call from the Nth on
    int code = 0;  // never 0
    long seen = 0;
    bool hit() {
        ++seen;
        return onwards ? seen >= nth : seen == nth;
    }
};

struct Settings {
    std::string device_name = "Stand-in";
    int capability_major = 8, capability_minor = 7;
    int driver_version = 13000;
    int devices = 1;
    bool integrated = true;
    size_t memory_bytes = size_t(8) << 30;
    std::string kernels;   // the host library that stands for real images (fatbin, cubin, PTX)
    double operation_ms = 0;  // every operation of a stream takes at least this long
    double kernel_ms = 0;     // and a kernel this long on top
    bool kernels_held = false;  // no kernel begins before this is taken back, by the control file
    int lost = 0;             // every call gives this code: the context is gone
    std::vector<Rule> fail;   // calls that fail
    std::vector<Rule> kernel_fails;  // kernels that fail while they run: from then on the context is lost
    std::vector<Rule> kernel_hangs;  // kernels that never end (the code says nothing)
};

// The settings in force; reads the control file again when it changed. Copies, so that no lock is held.
Settings settings();

// Which rule of the running kernel's applies: 0 none, else a code; -1 means it never ends.
int kernel_rule(const std::string& name);

// One per entry point, made when it is first called; counts the calls.
class Entry {
public:
    explicit Entry(const char* name);
    // Counts the call. What it must fail with: an injected failure, the driver not initialised, a context that is lost.
    CUresult enter();
    // The same for calls that a lost context does not spoil: the context stack, error texts, initialisation.
    CUresult enter_anyway();

private:
    std::string name_;
    std::atomic<long>* count_;
};

long calls_of(const std::string& name);
void violation(const std::string& text);  // a fault of the caller, for the report; also said on standard error

// ---- the device (device.cpp) ----------------------------------------------------------------------------------------

struct Context {
    bool primary = false;
    unsigned flags = 0;
};
bool initialised();
bool has_current_context();
std::atomic<int>& sticky();  // the code that every call gives since a kernel failed; 0: none

// ---- memory (memory.cpp) --------------------------------------------------------------------------------------------

// Whether [address, address + bytes) lies inside one live allocation that the device can reach.
bool device_can_reach(CUdeviceptr address, size_t bytes);
bool is_pinned(const void* address, size_t bytes);
// Looks at every guard zone; names who wrote there. False: something was overwritten, and the context is now lost.
bool guards_hold(const std::string& after);
// When the last context ends, so does everything that was allocated in it: counted as left behind.
void free_everything();
struct Accounts {
    size_t used_bytes = 0, peak_bytes = 0, pinned_bytes = 0;
    long allocations = 0, pinned_allocations = 0;
    std::vector<size_t> left_behind;  // sizes of what was never freed
};
Accounts accounts();

// ---- streams, events, graphs (stream.cpp, graph.cpp) -----------------------------------------------------

struct Operation {
    std::string what;
    std::function<void()> run;
    bool also_when_lost = false;  // waiting and recording: nobody may wait for ever because a kernel failed
};

// What a stream recorded instead of doing it.
struct Capture {
    CUstreamCaptureMode mode;
    uint64_t thread;
    bool invalid = false;
    std::vector<Operation> operations;
};

class Stream {
public:
    explicit Stream(bool blocking, int priority, unsigned flags);
    // Puts an operation behind those already there and returns its number. Never called while a capture is going on.
    uint64_t push(Operation operation);
    void wait_for(uint64_t number);
    void wait_idle();
    bool idle();
    void finish();  // the thread ends when the queue is empty

    const bool blocking;  // takes turns with the default stream
    const int priority;
    const unsigned flags;
    std::unique_ptr<Capture> capture;  // guarded by the lock of all captures

private:
    struct State;
    std::shared_ptr<State> state_;
};

// The stream behind a handle, 0 being the default stream; null for a handle that does not exist (any more).
std::shared_ptr<Stream> stream_of(CUstream handle);
// Puts an operation on a stream, or into its capture.
CUresult submit(CUstream handle, Operation operation);
// Does something in order with the default stream and waits for it: what a call without a stream means.
CUresult submit_and_wait(Operation operation);
void wait_for_all_streams();

// What this thread may not do while a capture goes on: waits, allocations, the default stream. Spoils that capture.
CUresult refuse_in_capture(CUresult code = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
// Guards every stream's `capture`.
std::mutex& capture_lock();
uint64_t this_thread();

// A table of handles: what is not in it does not exist, whatever the caller holds.
template <class T>
class Handles {
public:
    template <class H>
    H add(std::shared_ptr<T> thing) {
        std::lock_guard<std::mutex> hold(mutex_);
        // Handles are never used twice, so that one that was destroyed is found out.
        uintptr_t handle = next_;
        next_ += 16;
        things_[handle] = std::move(thing);
        return reinterpret_cast<H>(handle);
    }
    template <class H>
    std::shared_ptr<T> get(H handle) {
        std::lock_guard<std::mutex> hold(mutex_);
        auto found = things_.find(reinterpret_cast<uintptr_t>(handle));
        return found == things_.end() ? nullptr : found->second;
    }
    template <class H>
    std::shared_ptr<T> take(H handle) {
        std::lock_guard<std::mutex> hold(mutex_);
        auto found = things_.find(reinterpret_cast<uintptr_t>(handle));
        if (found == things_.end()) return nullptr;
        auto thing = found->second;
        things_.erase(found);
        return thing;
    }
    std::vector<std::shared_ptr<T>> all() {
        std::lock_guard<std::mutex> hold(mutex_);
        std::vector<std::shared_ptr<T>> list;
        for (auto& entry : things_) list.push_back(entry.second);
        return list;
    }

private:
    std::mutex mutex_;
    std::map<uintptr_t, std::shared_ptr<T>> things_;
    static std::atomic<uintptr_t> next_;
};
template <class T>
std::atomic<uintptr_t> Handles<T>::next_{0x5000};

}  // namespace standin

// How an entry point begins.
#define ENTRY_ANYWAY                                                   \
    static standin::Entry* entry = new standin::Entry(__func__);       \
    if (CUresult refused = entry->enter_anyway()) return refused;
#define ENTRY                                                          \
    static standin::Entry* entry = new standin::Entry(__func__);       \
    if (CUresult refused = entry->enter()) return refused;
#define ENTRY_IN_CONTEXT                                               \
    ENTRY if (!standin::has_current_context()) return CUDA_ERROR_INVALID_CONTEXT;
