// Streams: each is a thread that works off a queue, in order. Nothing is done when the call that asked for it returns.
//
// The default stream takes turns with the streams that are not made "non-blocking", as a real one does. After a kernel
// failed, what is still queued is skipped, and waits return: with the error. A kernel that hangs holds its stream for
// ever.
#include "standin.h"

#include <algorithm>
#include <chrono>
#include <thread>

namespace standin {

struct Stream::State {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<Operation> queue;
    uint64_t pushed = 0, done = 0;
    bool finish = false;

    void wait(uint64_t number) {
        std::unique_lock<std::mutex> hold(mutex);
        changed.wait(hold, [&] { return done >= number; });
    }
};

namespace {

struct Streams {
    Handles<Stream> table;
    std::shared_ptr<Stream> standard = std::make_shared<Stream>(true, 0, 0);
    std::mutex order;  // one at a time decides what waits for what
    std::vector<std::shared_ptr<Stream>> leaving;  // destroyed, with work that is still to be done; guarded by `order`
};

Streams& streams() {
    static Streams* all = new Streams;
    return *all;
}

bool is_default(CUstream handle) {
    return handle == nullptr || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD;
}

void sleep_ms(double ms) {
    if (ms > 0) std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(ms));
}

// The default stream waits for all blocking streams, and each of those for it.
void take_turns(const std::shared_ptr<Stream>& stream) {
    auto wait_for = [&](const std::shared_ptr<Stream>& other) {
        uint64_t number = other->push({"turn", [] {}, true});
        stream->push({"turn", [other, number] { other->wait_for(number); }, true});
    };
    if (!stream->blocking) return;
    if (stream != streams().standard) {
        if (!streams().standard->idle()) wait_for(streams().standard);
        return;
    }
    for (auto& other : streams().table.all())
        if (other->blocking && !other->idle()) wait_for(other);
}

// Destroyed streams whose work goes on.
std::vector<std::shared_ptr<Stream>> leaving() {
    std::lock_guard<std::mutex> hold(streams().order);
    auto& list = streams().leaving;
    list.erase(std::remove_if(list.begin(), list.end(), [](auto& stream) { return stream->idle(); }), list.end());
    return list;
}

CUresult create(CUstream* handle, unsigned flags, int priority) {
    if (flags & ~unsigned(CU_STREAM_NON_BLOCKING)) return CUDA_ERROR_INVALID_VALUE;
    bool blocking = !(flags & CU_STREAM_NON_BLOCKING);
    *handle = streams().table.add<CUstream>(std::make_shared<Stream>(blocking, priority, flags));
    return CUDA_SUCCESS;
}

}  // namespace

Stream::Stream(bool is_blocking, int of_priority, unsigned with_flags)
    : blocking(is_blocking), priority(of_priority), flags(with_flags), state_(std::make_shared<State>()) {
    std::thread([state = state_] {
        std::vector<Operation> batch;
        for (;;) {
            {
                std::unique_lock<std::mutex> hold(state->mutex);
                state->changed.wait(hold, [&] { return !state->queue.empty() || state->finish; });
                if (state->queue.empty()) return;
                batch.swap(state->queue);
            }
            for (Operation& operation : batch) {
                if (!operation.also_when_lost) sleep_ms(settings().operation_ms);
                if (operation.also_when_lost || !sticky()) operation.run();
                std::lock_guard<std::mutex> hold(state->mutex);
                ++state->done;
                state->changed.notify_all();
            }
            batch.clear();
        }
    }).detach();
}

uint64_t Stream::push(Operation operation) {
    std::lock_guard<std::mutex> hold(state_->mutex);
    state_->queue.push_back(std::move(operation));
    state_->changed.notify_all();
    return ++state_->pushed;
}

void Stream::wait_for(uint64_t number) { state_->wait(number); }

void Stream::wait_idle() {
    uint64_t last;
    {
        std::lock_guard<std::mutex> hold(state_->mutex);
        last = state_->pushed;
    }
    state_->wait(last);
}

bool Stream::idle() {
    std::lock_guard<std::mutex> hold(state_->mutex);
    return state_->done == state_->pushed;
}

void Stream::finish() {
    std::lock_guard<std::mutex> hold(state_->mutex);
    state_->finish = true;
    state_->changed.notify_all();
}

std::shared_ptr<Stream> stream_of(CUstream handle) {
    return is_default(handle) ? streams().standard : streams().table.get(handle);
}

CUresult submit(CUstream handle, Operation operation) {
    auto stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream == streams().standard)
        if (CUresult refused = refuse_in_capture(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT)) return refused;
    {
        std::lock_guard<std::mutex> hold(capture_lock());
        if (stream->capture) {
            if (stream->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
            stream->capture->operations.push_back(std::move(operation));
            return CUDA_SUCCESS;
        }
    }
    std::lock_guard<std::mutex> hold(streams().order);
    take_turns(stream);
    stream->push(std::move(operation));
    return CUDA_SUCCESS;
}

CUresult submit_and_wait(Operation operation) {
    if (CUresult refused = submit(nullptr, std::move(operation))) return refused;
    streams().standard->wait_idle();
    return CUresult(sticky().load());
}

void wait_for_all_streams() {
    for (auto& stream : streams().table.all()) stream->wait_idle();
    for (auto& stream : leaving()) stream->wait_idle();
    streams().standard->wait_idle();
}

std::mutex& capture_lock() {
    static auto* only = new std::mutex;
    return *only;
}

uint64_t this_thread() {
    static std::atomic<uint64_t> next{1};
    thread_local uint64_t mine = next++;
    return mine;
}

CUresult refuse_in_capture(CUresult code) {
    CUresult answer = CUDA_SUCCESS;
    std::lock_guard<std::mutex> hold(capture_lock());
    for (auto& stream : streams().table.all()) {
        Capture* capture = stream->capture.get();
        if (!capture || capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
        if (capture->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && capture->thread != this_thread()) continue;
        if (code == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT && !stream->blocking) continue;
        capture->invalid = true;
        answer = code;
    }
    return answer;
}

}  // namespace standin

using namespace standin;

extern "C" {

CUresult cuStreamCreateWithPriority(CUstream* handle, unsigned flags, int priority) {
    ENTRY_IN_CONTEXT
    return create(handle, flags, priority);
}

CUresult cuStreamCreate(CUstream* handle, unsigned flags) {
    ENTRY_IN_CONTEXT
    return create(handle, flags, 0);
}

CUresult cuStreamDestroy(CUstream handle) {
    ENTRY_IN_CONTEXT
    auto stream = streams().table.take(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    stream->finish();
    leaving();
    std::lock_guard<std::mutex> hold(streams().order);
    streams().leaving.push_back(stream);
    return CUDA_SUCCESS;
}

CUresult cuStreamGetPriority(CUstream handle, int* priority) {
    ENTRY_IN_CONTEXT
    auto stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    *priority = stream->priority;
    return CUDA_SUCCESS;
}

CUresult cuStreamGetFlags(CUstream handle, unsigned* flags) {
    ENTRY_IN_CONTEXT
    auto stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    *flags = stream->flags;
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream handle) {
    ENTRY_IN_CONTEXT
    auto stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (CUresult refused = refuse_in_capture()) return refused;
    stream->wait_idle();
    return CUresult(sticky().load());
}

CUresult cuStreamQuery(CUstream handle) {
    ENTRY_IN_CONTEXT
    auto stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (CUresult refused = refuse_in_capture()) return refused;
    if (!stream->idle()) return CUDA_ERROR_NOT_READY;
    return CUresult(sticky().load());
}

CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
    ENTRY_IN_CONTEXT
    return submit(handle, {"cuLaunchHostFunc", [=] { function(data); }});
}
}
