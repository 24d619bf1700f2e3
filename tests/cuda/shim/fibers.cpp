// The threads of one block as fibers, scheduled in an order that the caller chooses.
//
// Each CUDA thread has a stack of its own. A round gives every thread that can run its turn, in the chosen order; then
// whatever meeting is complete (a warp's operation, the block's barrier) lets its threads go on. Blocks run one after
// the other. Order 0 is ascending, 1 descending, and every other number seeds a shuffle that differs from round to
// round; blocks are taken in the same order as threads.
#include "device.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <random>
#include <string>
#include <vector>

// SHIM_UCONTEXT: change stacks with the C library's means, which every processor has; each change is a system call.
#if !defined(__x86_64__) && !defined(SHIM_UCONTEXT)
#define SHIM_UCONTEXT
#endif
#if defined(SHIM_UCONTEXT)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define FIBER_SANITIZED 1
#else
#define FIBER_SANITIZED 0
#endif

// The shared variables of all kernels: the linker marks both ends of their section.
extern unsigned char __start_driveway_shared[] __attribute__((weak));
extern unsigned char __stop_driveway_shared[] __attribute__((weak));

namespace shim {

Thread* current;
dim3 block_index, block_size, grid_size;

namespace {

constexpr std::size_t kStackBytes = 128 * 1024;
constexpr unsigned kWarp = 32;
constexpr int kPoison = 0xA5;

#if !defined(SHIM_UCONTEXT)
// Keeps what the System V ABI has a callee keep, and changes stacks. No system call, unlike swapcontext.
extern "C" void driveway_shim_switch(void** from, void* to);
asm(R"(
.text
.type driveway_shim_switch, @function
driveway_shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

struct Context {
    void* stack_pointer = nullptr;

    void prepare(unsigned char* stack, void (*entry)()) {
        void** top = reinterpret_cast<void**>(stack + kStackBytes - 64);
        *--top = nullptr;  // where entry would return to; it never does
        *--top = reinterpret_cast<void*>(entry);
        for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
        stack_pointer = top;
    }
    void switch_to(Context& other) { driveway_shim_switch(&stack_pointer, other.stack_pointer); }
};
#else
struct Context {
    ucontext_t saved{};

    void prepare(unsigned char* stack, void (*entry)()) {
        getcontext(&saved);
        saved.uc_stack.ss_sp = stack;
        saved.uc_stack.ss_size = kStackBytes;
        saved.uc_link = nullptr;
        makecontext(&saved, entry, 0);
    }
    void switch_to(Context& other) { swapcontext(&saved, &other.saved); }
};
#endif

struct Fiber : Thread {
    Context context;
    unsigned char* stack = nullptr;
    void* sanitizer_state = nullptr;
    bool waiting = false, done = false;
    Meeting kind = Meeting::block;
    unsigned mask = 0;
    std::uint64_t value = 0, answer = 0;
    int source_lane = 0;
    const char* file = "";
    int line = 0;
};

struct Failure {
    std::string text;
};

std::mutex one_launch;
std::vector<unsigned char*> stacks;
std::vector<Fiber> fibers;
Context scheduler;
const std::function<void()>* kernel;
int thread_order = 0;
thread_local std::string failure;
#if FIBER_SANITIZED
void* scheduler_state = nullptr;
const void* scheduler_stack = nullptr;
std::size_t scheduler_stack_bytes = 0;
#endif

Fiber& running() { return *static_cast<Fiber*>(current); }

void leave(bool for_good) {
    Fiber& fiber = running();
#if FIBER_SANITIZED
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.sanitizer_state, scheduler_stack, scheduler_stack_bytes);
#endif
    fiber.context.switch_to(scheduler);
#if FIBER_SANITIZED
    __sanitizer_finish_switch_fiber(fiber.sanitizer_state, nullptr, nullptr);
#endif
    (void)for_good;
}

void begin() {
#if FIBER_SANITIZED
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
    (*kernel)();
    running().done = true;
    leave(true);
    std::abort();  // a finished thread is never resumed
}

void resume(Fiber& fiber) {
    current = &fiber;
#if FIBER_SANITIZED
    __sanitizer_start_switch_fiber(&scheduler_state, fiber.stack, kStackBytes);
#endif
    scheduler.switch_to(fiber.context);
#if FIBER_SANITIZED
    __sanitizer_finish_switch_fiber(scheduler_state, nullptr, nullptr);
#endif
}

std::string place(const Fiber& fiber) {
    const char* slash = std::strrchr(fiber.file, '/');
    return std::string(slash ? slash + 1 : fiber.file) + ":" + std::to_string(fiber.line);
}

[[noreturn]] void fail(const std::string& what) {
    throw Failure{what + ", block (" + std::to_string(block_index.x) + "," + std::to_string(block_index.y) + "," +
                  std::to_string(block_index.z) + ")"};
}

std::uint64_t answer_for(const Fiber& fiber, std::size_t warp_begin, unsigned votes) {
    if (fiber.kind == Meeting::ballot) return votes;
    if (fiber.kind != Meeting::shuffle) return 0;
    if ((fiber.mask >> fiber.source_lane & 1u) == 0) fail("a shuffle from a lane that takes no part, " + place(fiber));
    return fibers[warp_begin + static_cast<std::size_t>(fiber.source_lane)].value;
}

/// Whether the warp's operation that `first` waits in is complete; if so, its threads go on.
bool release_warp(const Fiber& first, std::size_t begin, std::size_t end) {
    const unsigned mask = first.mask;
    unsigned votes = 0;
    if ((mask >> first.lane & 1u) == 0) fail("a thread that its own mask leaves out, " + place(first));
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if ((mask >> lane & 1u) == 0) continue;
        if (begin + lane >= end) {
            // A warp that the block does not fill: CUDA ignores the lanes that do not exist only for a full mask.
            if (mask == 0xffffffffu) continue;
            fail("a warp operation names a lane that does not exist, " + place(first));
        }
        const Fiber& other = fibers[begin + lane];
        if (other.done) fail("a warp operation waits for a thread that has ended, " + place(first));
        if (!other.waiting) return false;
        if (other.kind == Meeting::block)
            fail("a warp operation at " + place(first) + " and a barrier at " + place(other));
        if (other.kind != first.kind || other.mask != mask || other.line != first.line || other.file != first.file)
            fail("threads of a warp meet at " + place(first) + " and at " + place(other));
        votes |= (other.kind == Meeting::ballot && other.value != 0 ? 1u : 0u) << lane;
    }
    for (std::size_t at = begin; at < end; ++at)
        if (mask >> (at - begin) & 1u) fibers[at].answer = answer_for(fibers[at], begin, votes);
    for (std::size_t at = begin; at < end; ++at)
        if (mask >> (at - begin) & 1u) fibers[at].waiting = false;
    return true;
}

bool release_warps() {
    bool released = false;
    for (std::size_t begin = 0; begin < fibers.size(); begin += kWarp) {
        const std::size_t end = std::min<std::size_t>(begin + kWarp, fibers.size());
        for (std::size_t at = begin; at < end; ++at)
            if (fibers[at].waiting && fibers[at].kind != Meeting::block)
                released |= release_warp(fibers[at], begin, end);
    }
    return released;
}

/// Whether all threads stand at one barrier; if so, they go on.
void release_block() {
    const Fiber& first = *std::find_if(fibers.begin(), fibers.end(), [](const Fiber& fiber) { return !fiber.done; });
    for (const Fiber& fiber : fibers) {
        if (fiber.done) fail("a barrier that some threads never reach, " + place(first));
        if (fiber.kind != Meeting::block)
            fail("deadlock: a barrier at " + place(first) + " and a wait at " + place(fiber));
        if (fiber.line != first.line || fiber.file != first.file)
            fail("a divergent barrier: threads stand at " + place(first) + " and at " + place(fiber));
    }
    for (Fiber& fiber : fibers) fiber.waiting = false;
}

/// 0 to count - 1, or down from there.
std::vector<std::size_t> ordered(std::size_t count) {
    std::vector<std::size_t> order(count);
    for (std::size_t at = 0; at < count; ++at) order[at] = thread_order == 1 ? count - 1 - at : at;
    return order;
}

__attribute__((no_sanitize("address"))) void poison(unsigned char* begin, const unsigned char* end) {
    for (; begin < end; ++begin) *begin = kPoison;
}

void prepare_block() {
    poison(__start_driveway_shared, __stop_driveway_shared);
    for (std::size_t at = 0; at < fibers.size(); ++at) {
        Fiber& fiber = fibers[at];
        fiber = Fiber{};
        fiber.stack = stacks[at];
        fiber.lane = static_cast<int>(at % kWarp);
        const auto thread = static_cast<unsigned>(at);
        const unsigned row = thread / block_size.x;
        fiber.index = {thread % block_size.x, row % block_size.y, row / block_size.y};
#if FIBER_SANITIZED
        __asan_unpoison_memory_region(fiber.stack, kStackBytes);  // a thread that never ended left its marks
#endif
        fiber.context.prepare(fiber.stack, begin);
    }
}

void run_block(std::mt19937& random) {
    prepare_block();
    std::vector<std::size_t> order = ordered(fibers.size());
    std::size_t ended = 0;
    while (true) {
        if (thread_order > 1) std::shuffle(order.begin(), order.end(), random);
        for (const std::size_t at : order) {
            if (fibers[at].waiting || fibers[at].done) continue;
            resume(fibers[at]);
            ended += fibers[at].done;
        }
        if (ended == fibers.size()) return;
        if (!release_warps()) release_block();
    }
}

void check_size(const unsigned grid[3], const unsigned block[3], std::size_t shared_bytes) {
    const std::uint64_t threads = std::uint64_t{block[0]} * block[1] * block[2];
    if (threads == 0 || threads > 1024 || block[2] > 64)
        throw Failure{"a block of " + std::to_string(threads) + " threads"};
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[0] > 0x7fffffffu || grid[1] > 0xffffu || grid[2] > 0xffffu)
        throw Failure{"a grid of " + std::to_string(grid[0]) + " x " + std::to_string(grid[1]) + " x " +
                      std::to_string(grid[2]) + " blocks"};
    if (shared_bytes > 0) throw Failure{"dynamic shared memory, which no kernel uses"};
}

void run_grid(const unsigned grid[3], const unsigned block[3], std::size_t shared_bytes) {
    check_size(grid, block, shared_bytes);
    grid_size = {grid[0], grid[1], grid[2]};
    block_size = {block[0], block[1], block[2]};
    fibers.assign(std::size_t{block[0]} * block[1] * block[2], Fiber{});
    while (stacks.size() < fibers.size()) {
        constexpr int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, kind, -1, 0);
        if (stack == MAP_FAILED) throw Failure{"no memory for a thread's stack"};
        stacks.push_back(static_cast<unsigned char*>(stack));
    }
    std::mt19937 random(static_cast<unsigned>(thread_order));
    std::vector<std::size_t> blocks = ordered(std::size_t{grid[0]} * grid[1] * grid[2]);
    if (thread_order > 1) std::shuffle(blocks.begin(), blocks.end(), random);
    for (const std::size_t at : blocks) {
        const std::size_t plane = at / grid[0];
        block_index = {static_cast<unsigned>(at % grid[0]), static_cast<unsigned>(plane % grid[1]),
                       static_cast<unsigned>(plane / grid[1])};
        run_block(random);
    }
}

}  // namespace

std::uint64_t meet(Meeting kind, unsigned mask, std::uint64_t value, int source_lane, const char* file, int line) {
    Fiber& fiber = running();
    fiber.kind = kind;
    fiber.mask = mask;
    fiber.value = value;
    fiber.source_lane = source_lane;
    fiber.file = file;
    fiber.line = line;
    fiber.waiting = true;
    leave(false);
    return fiber.answer;
}

void run(const std::function<void()>& body, const unsigned grid[3], const unsigned block[3], std::size_t shared_bytes) {
    const std::lock_guard<std::mutex> lock(one_launch);
    failure.clear();
    kernel = &body;
    try {
        run_grid(grid, block, shared_bytes);
    } catch (const Failure& caught) {
        failure = caught.text;
    }
}

}  // namespace shim

/// In which order threads and blocks of the launches to come get their turn: 0 ascending, 1 descending, else a seed.
extern "C" __attribute__((visibility("default"))) void driveway_shim_order(int order) { shim::thread_order = order; }

/// Why this thread's last launch failed, in words; null when it did not.
extern "C" __attribute__((visibility("default"))) const char* driveway_shim_failure() {
    return shim::failure.empty() ? nullptr : shim::failure.c_str();
}
