// Events, capture and graphs.
//
// An event is the moment at which what lies before it on its stream was done. A stream that captures keeps its
// operations; a graph is a list of them, and a launch does them in order, as one operation of the stream. A call that a
// capture does not allow spoils it, and then the capture's end says so and gives no graph.
#include "standin.h"

#include <chrono>

namespace standin {
namespace {

// One record of an event.
struct Moment {
    std::mutex mutex;
    std::condition_variable changed;
    bool passed = false;
    double ms = 0;

    void pass() {
        std::lock_guard<std::mutex> hold(mutex);
        passed = true;
        ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
        changed.notify_all();
    }
    void wait() {
        std::unique_lock<std::mutex> hold(mutex);
        changed.wait(hold, [&] { return passed; });
    }
    bool has_passed() {
        std::lock_guard<std::mutex> hold(mutex);
        return passed;
    }
};

struct Event {
    explicit Event(unsigned with_flags) : flags(with_flags) {}
    const unsigned flags;
    std::mutex mutex;
    std::shared_ptr<Moment> last;  // null: never recorded
    CUstream captured_in = nullptr;

    CUstream capturing_stream() {
        std::lock_guard<std::mutex> hold(mutex);
        return captured_in;
    }
    std::shared_ptr<Moment> moment() {
        std::lock_guard<std::mutex> hold(mutex);
        return last;
    }
};

struct Graph {
    std::vector<Operation> operations;
};

// Runs of one executable never overlap.
struct Executable {
    std::vector<Operation> operations;
    std::mutex running;
};

Handles<Event>& events() {
    static auto* all = new Handles<Event>;
    return *all;
}
Handles<Graph>& graphs() {
    static auto* all = new Handles<Graph>;
    return *all;
}
Handles<Executable>& executables() {
    static auto* all = new Handles<Executable>;
    return *all;
}

// The capture of a stream, with the lock held; null when it does not capture.
Capture* capture_of(const std::shared_ptr<Stream>& stream) { return stream->capture.get(); }

}  // namespace
}  // namespace standin

using namespace standin;

extern "C" {

CUresult cuEventCreate(CUevent* handle, unsigned flags) {
    ENTRY_IN_CONTEXT
    if (flags & ~7u) return CUDA_ERROR_INVALID_VALUE;
    *handle = events().add<CUevent>(std::make_shared<Event>(flags));
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent handle) {
    ENTRY_IN_CONTEXT
    return events().take(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
    ENTRY_IN_CONTEXT
    auto event = events().get(handle);
    auto stream = stream_of(stream_handle);
    if (!event || !stream) return CUDA_ERROR_INVALID_HANDLE;
    {
        std::lock_guard<std::mutex> hold(capture_lock());
        if (Capture* capture = capture_of(stream)) {
            // A mark in the capture, for streams that wait for it; nobody outside can wait for it.
            if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
            std::lock_guard<std::mutex> of_event(event->mutex);
            event->captured_in = stream_handle;
            return CUDA_SUCCESS;
        }
    }
    auto moment = std::make_shared<Moment>();
    {
        std::lock_guard<std::mutex> hold(event->mutex);
        event->last = moment;
        event->captured_in = nullptr;
    }
    return submit(stream_handle, {"cuEventRecord", [moment] { moment->pass(); }, true});
}

CUresult cuEventQuery(CUevent handle) {
    ENTRY_IN_CONTEXT
    auto event = events().get(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (event->capturing_stream()) return CUDA_ERROR_CAPTURED_EVENT;
    if (CUresult refused = refuse_in_capture()) return refused;
    auto moment = event->moment();
    if (moment && !moment->has_passed()) return CUDA_ERROR_NOT_READY;
    return CUresult(sticky().load());
}

CUresult cuEventSynchronize(CUevent handle) {
    ENTRY_IN_CONTEXT
    auto event = events().get(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (event->capturing_stream()) return CUDA_ERROR_CAPTURED_EVENT;
    if (CUresult refused = refuse_in_capture()) return refused;
    if (auto moment = event->moment()) moment->wait();
    return CUresult(sticky().load());
}

CUresult cuEventElapsedTime(float* ms, CUevent first_handle, CUevent second_handle) {
    ENTRY_IN_CONTEXT
    auto first = events().get(first_handle), second = events().get(second_handle);
    if (!first || !second || (first->flags | second->flags) & CU_EVENT_DISABLE_TIMING) return CUDA_ERROR_INVALID_HANDLE;
    auto from = first->moment(), to = second->moment();
    if (!from || !to) return CUDA_ERROR_INVALID_HANDLE;
    if (!from->has_passed() || !to->has_passed()) return CUDA_ERROR_NOT_READY;
    *ms = float(to->ms - from->ms);
    return CUDA_SUCCESS;
}

CUresult cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned) {
    ENTRY_IN_CONTEXT
    auto event = events().get(handle);
    auto stream = stream_of(stream_handle);
    if (!event || !stream) return CUDA_ERROR_INVALID_HANDLE;
    {
        std::lock_guard<std::mutex> hold(capture_lock());
        if (Capture* capture = capture_of(stream)) {
            if (event->capturing_stream() == stream_handle) return CUDA_SUCCESS;
            capture->invalid = true;
            return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
        }
    }
    if (event->capturing_stream()) return CUDA_ERROR_NOT_SUPPORTED;  // a stream that joins a capture
    auto moment = event->moment();
    if (!moment) return CUDA_SUCCESS;
    return submit(stream_handle, {"cuStreamWaitEvent", [moment] { moment->wait(); }, true});
}

CUresult cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode mode) {
    ENTRY_IN_CONTEXT
    auto stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream == stream_of(nullptr)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    std::lock_guard<std::mutex> hold(capture_lock());
    if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    stream->capture = std::make_unique<Capture>();
    stream->capture->mode = mode;
    stream->capture->thread = this_thread();
    return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph) {
    ENTRY_IN_CONTEXT
    *graph = nullptr;
    auto stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    std::lock_guard<std::mutex> hold(capture_lock());
    if (!stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    if (stream->capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && stream->capture->thread != this_thread())
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    auto capture = std::move(stream->capture);
    if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    *graph = graphs().add<CUgraph>(std::make_shared<Graph>(Graph{std::move(capture->operations)}));
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
    ENTRY_IN_CONTEXT
    auto stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    std::lock_guard<std::mutex> hold(capture_lock());
    Capture* capture = capture_of(stream);
    *status = !capture            ? CU_STREAM_CAPTURE_STATUS_NONE
              : capture->invalid  ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                  : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}

// Only how many there are: nodes themselves cannot be had.
CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
    ENTRY_IN_CONTEXT
    auto graph = graphs().get(handle);
    if (!graph) return CUDA_ERROR_INVALID_HANDLE;
    if (nodes) return CUDA_ERROR_NOT_SUPPORTED;
    *count = graph->operations.size();
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph handle, unsigned long long flags) {
    ENTRY_IN_CONTEXT
    if (flags) return CUDA_ERROR_NOT_SUPPORTED;
    auto graph = graphs().get(handle);
    if (!graph) return CUDA_ERROR_INVALID_HANDLE;
    auto made = std::make_shared<Executable>();
    made->operations = graph->operations;
    *executable = executables().add<CUgraphExec>(made);
    return CUDA_SUCCESS;
}

CUresult cuGraphUpload(CUgraphExec handle, CUstream stream) {
    ENTRY_IN_CONTEXT
    return executables().get(handle) && stream_of(stream) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream) {
    ENTRY_IN_CONTEXT
    auto executable = executables().get(handle);
    if (!executable) return CUDA_ERROR_INVALID_HANDLE;
    return submit(stream, {"cuGraphLaunch", [executable] {
                               std::lock_guard<std::mutex> hold(executable->running);
                               for (Operation& operation : executable->operations)
                                   if (operation.also_when_lost || !sticky()) operation.run();
                           }});
}

CUresult cuGraphDestroy(CUgraph handle) {
    ENTRY_IN_CONTEXT
    return graphs().take(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuGraphExecDestroy(CUgraphExec handle) {
    ENTRY_IN_CONTEXT
    return executables().take(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
}
