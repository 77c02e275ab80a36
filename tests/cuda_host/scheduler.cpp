// Runs a grid on one system thread: blocks one after another, the threads of a block as fibers,
// which change places where they wait for each other. The order of both is drawn from a seed.
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <stdexcept>
#include <vector>

#include "context.h"
#include "shim.h"
#if defined(CUDA_HOST_ASAN)
#include <sanitizer/asan_interface.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_host {

volatile bool expired;

namespace {

constexpr size_t kStack = 256 << 10;
constexpr size_t kMostShared = 227 << 10;

struct Fiber {
  Context context;
  char* stack = nullptr;
  uint3 index;
  bool returned;
  const char* waits;  // in which function, and where; null: nowhere
  Site site;
};

// Lanes of a warp that wait for each other.
struct Meeting {
  const char* what;
  Site site;
  uint32_t mask, arrived = 0;
  void* lanes[kLanes];
  void (*complete)(uint32_t, void* const*);
};

struct Failure {
  std::string message;
  const void* pc;
};

// What tests set.
struct {
  bool tolerates_returned = false;  // threads that have returned are not waited for, as on a GPU
  double seconds = 60;              // of processor time that a launch may take
} options;
std::mt19937 random_order(1);

std::mutex one_launch;  // everything below belongs to the launch that holds it
pthread_t launcher;
Fiber fibers[kMostThreads];
Fiber* current = nullptr;
int threads, running;  // of the block; those that have not returned
std::vector<int> ready;
Meeting meetings[kMostThreads / kLanes][kLanes];
uint32_t gone[kMostThreads / kLanes];  // lanes that have returned or never were
struct {
  const char* what;
  Site site;
  int arrived, count, result;
} barrier;
Context host;
void (*kernel_body)(const void*);
const void* kernel_closure;
std::vector<char> dynamic_memory;
Range static_memory;
Failure* failure;

int rank_of(const Fiber& fiber) { return static_cast<int>(&fiber - fibers); }
bool same(Site a, Site b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

std::string triple(unsigned x, unsigned y, unsigned z) {
  return "(" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ")";
}

// ---- Scheduling ----

void pause() { switch_context(current->context, host); }

void wait_in(const char* what, Site site) {  // from the next pause on, until released
  current->waits = what;
  current->site = site;
}

void release(int rank) {
  fibers[rank].waits = nullptr;
  ready.push_back(rank);
}

void release_block_if_complete() {
  const int awaited = options.tolerates_returned ? running : threads;
  if (barrier.arrived == 0 || barrier.arrived < awaited) return;
  barrier.result = barrier.count;
  barrier.arrived = barrier.count = 0;
  check_block_barrier();
  for (int i = 0; i < threads; ++i) {
    if (!fibers[i].returned) release(i);
  }
}

void release_warp_if_complete(int warp, Meeting& meeting) {
  const uint32_t awaited = meeting.mask & ~(options.tolerates_returned ? gone[warp] : 0);
  if (meeting.arrived == 0 || meeting.arrived != awaited) return;
  if (meeting.complete) meeting.complete(meeting.arrived, meeting.lanes);
  if (std::strcmp(meeting.what, "__syncwarp") == 0) check_warp_barrier(warp, meeting.arrived);
  for (int i = 0; i < kLanes; ++i) {
    if (meeting.arrived >> i & 1) release(warp * kLanes + i);
  }
  meeting.arrived = 0;
}

void fiber_entry() {
  kernel_body(kernel_closure);
  current->returned = true;
  --running;
  const int rank = rank_of(*current), warp = rank / kLanes;
  gone[warp] |= 1u << rank % kLanes;
  for (Meeting& meeting : meetings[warp]) release_warp_if_complete(warp, meeting);
  release_block_if_complete();
  pause();
}

// Who waits where, in words, when nobody can go on.
std::string stuck() {
  std::map<std::string, int> groups;
  for (int i = 0; i < threads; ++i) {
    const Fiber& f = fibers[i];
    ++groups[f.returned ? "returned" : "wait in " + described(f.waits, f.site)];
  }
  std::string text = "divergent barrier: of " + std::to_string(threads) + " threads";
  const char* comma = " ";
  for (const auto& [what, count] : groups) {
    text += comma + std::to_string(count) + " " + (what == "returned" ? "have " : "") + what;
    comma = ", ";
  }
  return text;
}

// Ends the launch from the system thread's own stack: fibers are dropped where they stand.
[[noreturn]] void raise_failure(bool in_block) {
  const Failure failed = *failure;
  std::string text = failed.message;
  if (failed.pc) text += " at " + source_line(failed.pc);
  text += "; block " + triple(blockIdx.x, blockIdx.y, blockIdx.z);
  if (in_block) text += ", " + thread_name(rank());
  current = nullptr;
  delete failure;
  failure = nullptr;
#if defined(CUDA_HOST_ASAN)
  for (Fiber& f : fibers) {
    if (f.stack) ASAN_UNPOISON_MEMORY_REGION(f.stack, kStack);
  }
#endif
  throw std::runtime_error(text);
}

char* new_stack() {
  void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("no memory for the stack of a thread");
  mprotect(memory, 4096, PROT_NONE);  // an overflow ends the process
  return static_cast<char*>(memory);
}

void run_block() {
  running = threads;
  barrier = {};
  ready.clear();
  for (auto& warp : meetings) {
    for (Meeting& meeting : warp) meeting.arrived = 0;
  }
  for (int i = 0; i < threads; ++i) {
    Fiber& f = fibers[i];
    if (!f.stack) f.stack = new_stack();
    prepare(f.context, f.stack, kStack, fiber_entry);
    const unsigned x = blockDim.x, y = blockDim.y;
    f.index = {i % x, i / x % y, i / x / y};
    f.returned = false;
    f.waits = nullptr;
    ready.push_back(i);
  }
  for (int warp = 0; warp * kLanes < threads; ++warp) {
    const int lanes = std::min(threads - warp * kLanes, kLanes);
    gone[warp] = lanes == kLanes ? 0 : ~0u << lanes;
  }
  // Not a number, in every floating type.
  std::fill(dynamic_memory.begin(), dynamic_memory.end(), '\xFF');
  std::memset(reinterpret_cast<void*>(static_memory.begin), 0xFF,
              static_memory.end - static_memory.begin);
  drop_copies();
  check_block();
  std::vector<int> turn;
  while (running > 0) {
    if (ready.empty()) failure = new Failure{stuck(), nullptr};
    if (expired && !failure) failure = new Failure{kEndless, nullptr};
    if (failure) raise_failure(false);
    turn.swap(ready);
    ready.clear();
    std::shuffle(turn.begin(), turn.end(), random_order);
    for (int i : turn) {
      current = &fibers[i];
      threadIdx = current->index;
      switch_context(host, current->context);
      if (failure) raise_failure(true);
    }
    current = nullptr;
  }
}

// Ends a launch that takes too long. A signal comes when the thread has had its processor time; the
// next one, where nothing has asked meanwhile, ends the kernel where it is.
class Watchdog {
 public:
  Watchdog() {
    expired = false;
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
    sigaction(SIGVTALRM, &action, &before_);
    sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGVTALRM;
    event._sigev_un._tid = static_cast<int>(syscall(SYS_gettid));
    timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer_);
    const auto whole = static_cast<time_t>(options.seconds);
    const auto rest = static_cast<long>((options.seconds - whole) * 1e9);
    const itimerspec when = {{0, 100'000'000}, {whole, rest}};
    timer_settime(timer_, 0, &when, nullptr);
  }
  ~Watchdog() {
    timer_delete(timer_);
    sigaction(SIGVTALRM, &before_, nullptr);
  }

 private:
  static void on_signal(int, siginfo_t*, void* context) {
    if (expired && current && !failure) {
      void* pc = nullptr;
#if defined(__x86_64__)
      pc = reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP] +
                                   1);
#endif
      fault(kEndless, pc);
    }
    expired = true;
  }

  timer_t timer_;
  struct sigaction before_;
};

}  // namespace

void launch(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*),
            const void* closure) {
  const uint64_t size = uint64_t(block.x) * block.y * block.z;
  const bool fits = size > 0 && size <= kMostThreads && block.z <= 64 && grid.x > 0 &&
                    grid.x < 1u << 31 && grid.y > 0 && grid.y < 1 << 16 && grid.z > 0 &&
                    grid.z < 1 << 16 && shared_bytes <= kMostShared;
  if (!fits) {
    throw std::runtime_error("invalid configuration of a launch: grid " +
                             triple(grid.x, grid.y, grid.z) + ", block " +
                             triple(block.x, block.y, block.z) + ", " +
                             std::to_string(shared_bytes) + " bytes of dynamic shared memory");
  }
  const std::lock_guard<std::mutex> guard(one_launch);
  launcher = pthread_self();
  gridDim = grid;
  blockDim = block;
  kernel_body = body;
  kernel_closure = closure;
  threads = static_cast<int>(size);
  static_memory = static_shared();
  dynamic_memory = std::vector<char>(shared_bytes);
  const auto dynamic = reinterpret_cast<uintptr_t>(dynamic_memory.data());
  check_launch(static_memory, {dynamic, dynamic + shared_bytes});
  const Watchdog watchdog;
  std::vector<uint32_t> order(grid.x * grid.y * grid.z);
  for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random_order);
  for (const uint32_t i : order) {
    blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    run_block();
  }
}

void* dynamic_shared() { return dynamic_memory.data(); }

int meet_block(const char* what, Site site, bool predicate) {
  if (barrier.arrived == 0) {
    barrier.what = what;
    barrier.site = site;
  } else if (!same(barrier.site, site)) {
    fault("divergent barrier: " + described(what, site) + ", while others wait in " +
          described(barrier.what, barrier.site));
  }
  ++barrier.arrived;
  barrier.count += predicate;
  wait_in(what, site);
  release_block_if_complete();
  pause();
  return barrier.result;
}

void meet_warp(const char* what, Site site, uint32_t mask, void* brought,
               void (*complete)(uint32_t, void* const*)) {
  const int warp = rank() / kLanes, me = lane();
  if (!(mask >> me & 1)) fault(described(what, site) + ": the mask lacks the lane that calls");
  if (mask & gone[warp] && !options.tolerates_returned) {
    fault(described(what, site) +
          ": divergent barrier: the mask names lanes that have returned or never were");
  }
  Meeting* place = nullptr;
  for (Meeting& m : meetings[warp]) {
    if (m.arrived == 0) {
      if (!place) place = &m;
    } else if (m.mask == mask && same(m.site, site) && std::strcmp(m.what, what) == 0) {
      place = &m;
      break;
    }
  }
  if (place->arrived == 0) *place = {what, site, mask, 0, {}, complete};
  place->arrived |= 1u << me;
  place->lanes[me] = brought;
  wait_in(what, site);
  release_warp_if_complete(warp, *place);
  pause();
}

void fault(const std::string& message, const void* pc) {
  if (!current) throw std::runtime_error(message);
  failure = new Failure{message, pc};
  pause();  // for good
  std::abort();
}

int rank() { return rank_of(*current); }
int lane() { return rank() % kLanes; }
bool in_kernel() { return current && pthread_equal(launcher, pthread_self()); }
Range stack() {
  const auto begin = reinterpret_cast<uintptr_t>(current->stack);
  return {begin, begin + kStack};
}

std::string thread_name(int rank) {
  const unsigned x = blockDim.x, y = blockDim.y;
  return "thread " + triple(rank % x, rank / x % y, rank / x / y);
}

}  // namespace cuda_host

// ---- Of CUDA's library, what csrc/common calls. ----

extern "C" {

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  cuda_host::check_memset(data, bytes);
  std::memset(data, value, bytes);
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "an error"; }

// ---- For the tests ----

__attribute__((visibility("default"))) void cuda_host_seed(unsigned seed) {
  const std::lock_guard<std::mutex> guard(cuda_host::one_launch);
  cuda_host::random_order.seed(seed);
}
__attribute__((visibility("default"))) void cuda_host_tolerate_returned(bool tolerate) {
  cuda_host::options.tolerates_returned = tolerate;
}
__attribute__((visibility("default"))) void cuda_host_limit(double seconds) {
  cuda_host::options.seconds = seconds;
}
}
