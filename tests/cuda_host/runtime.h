// Between the header that kernels see (shim.h) and what runs them.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace cuda_host {

// Where a barrier stands in the source. Threads that meet have to meet at the same one.
struct Site {
  const char* file;
  int line;
};

constexpr int kMostThreads = 1024, kLanes = 32;

struct Range {
  uintptr_t begin, end;

  bool has(uintptr_t at, size_t size = 1) const { return at >= begin && at + size <= end; }
};

// ---- scheduler.cpp ----

// Runs `body(closure)` once for every thread of the grid.
void launch(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*),
            const void* closure);

// The dynamic shared memory of the block.
void* dynamic_shared();

// Waits until all threads of the block are here; how many of them came with a true predicate.
int meet_block(const char* what, Site site, bool predicate);

// Waits until all lanes of the mask are here. The last of them calls `complete`, which finds what
// each lane has brought (null for lanes that are not in the mask), and may write results into it.
void meet_warp(const char* what, Site site, uint32_t mask, void* brought,
               void (*complete)(uint32_t mask, void* const* lanes));

// Ends the launch with an error, which the operator call raises. `pc`: a return address in the
// kernel, which is named by file and line, or null.
[[noreturn]] void fault(const std::string& message, const void* pc = nullptr);

extern volatile bool expired;  // the launch has had its time: it is ended at the next occasion
constexpr char kEndless[] = "no end in sight";

bool in_kernel();                   // whether the caller is a thread of a kernel: the running one
int rank();                         // its place in the block
int lane();                         // its place in the warp
Range stack();                      // its stack
std::string thread_name(int rank);  // "thread (3, 0, 0)"

// ---- module.cpp ----

Range module();         // this library
Range static_shared();  // its static shared memory
const char* module_path();
std::string source_line(const void* pc);  // file:line of a return address, and where it was inlined
std::string described(const char* what, Site site);  // what at file:line

// ---- collectives.cpp ----

unsigned ballot(const char* what, Site site, unsigned mask, bool predicate);
// Replaces a value by that of lane `from`, or leaves it alone.
void shuffle(const char* what, Site site, unsigned mask, void* value, size_t size, int from);

// Asynchronous copies of the running thread: `zeros` of the bytes are not read but set to 0.
void copy_async(void* shared, const void* global, size_t bytes, size_t zeros);
void commit_copies();
void wait_copies(size_t most);  // until so many groups are under way
void drop_copies();             // of all threads

// See csrc/common/tensor_core.h.
void multiply_add(Site site, float* d, const uint32_t* a, const uint32_t* b, bool bfloat16);
void load_matrices(Site site, uint32_t* out, const void* row, bool transposed);

// ---- checker.cpp; without it these do nothing. ----

enum class Access { kRead, kWrite, kAtomic };

#if defined(CUDA_HOST_CHECKED)
// An access by the running thread; what `pc` names is where it stands.
void check(const void* at, size_t size, Access access, const void* pc);
void check_launch(Range static_shared, Range dynamic_shared);
void check_block();          // a block begins
void check_block_barrier();  // all threads of the block have met
void check_warp_barrier(int warp, uint32_t lanes);
void check_memset(const void* at, size_t size);
// As if nobody had written to this shared memory.
void forget_writes(const void* at, size_t size);
// Memory of the operator call that runs on this system thread: nothing else may be touched.
void may_touch(const void* data, size_t bytes, size_t element, bool writes, std::string what);
void call_ends();
#else
inline void check(const void*, size_t, Access, const void* pc) {
  if (expired) fault(kEndless, pc);
}
inline void check_launch(Range, Range) {}
inline void check_block() {}
inline void check_block_barrier() {}
inline void check_warp_barrier(int, uint32_t) {}
inline void check_memset(const void*, size_t) {}
inline void forget_writes(const void*, size_t) {}
#endif

}  // namespace cuda_host
