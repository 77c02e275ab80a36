// Checks every access of a kernel to memory: what the compiler's instrumentation for its thread and
// undefined-behaviour sanitizers calls stands here, in place of their own libraries.
//
// Caught: races (two threads, one of which writes, and no barrier between them) on shared memory
// and on buffers, within a block and between blocks, and of plain accesses with atomic ones; reads
// of shared memory that nobody has written; accesses outside of the call's buffers and of shared
// arrays, misaligned ones, index arithmetic that overflows.
#include <cxxabi.h>
#include <elf.h>
#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <vector>

#include "runtime.h"

namespace cuda_host {
namespace {

// Memory that kernels may touch, in cells of as few bytes as a thread writes there.
struct Region {
  Range range;
  int cell_bytes;
  bool writes;
  std::string what;       // empty: not checked
  size_t first_cell = 0;  // in `cells`

  bool operator<(const Region& other) const { return range.begin < other.range.begin; }
};

// Who has accessed a cell, and when: `epoch` counts the block's barriers, `time` the warp's.
struct Record {
  uint32_t block = 0, pc = 0, epoch = 0;
  uint16_t time = 0, thread = 0;
};

// What is known of a cell; of no meaning where the stamp is not that of the block (shared memory)
// or of the launch (buffers).
struct Cell {
  uint32_t stamp = 0;
  Record write;
  Record reads[2], atomics[2];  // by two threads, the last ones
};

std::mutex registering;
std::map<pthread_t, std::vector<Region>> registered;  // by the calls under way

// All below belongs to the launch under way.
std::vector<Region> buffers, arrays;  // of global memory, of shared memory
std::vector<Cell> cells;
uint32_t serial, launch_stamp, block_stamp;
Range shared_memory, dynamic_memory;
uint32_t epoch;
uint16_t times[kMostThreads][kLanes];  // the last time of each lane of the warp that is known of

bool ordered(const Record& before, int me) {
  if (before.block != block_stamp) return false;
  if (before.thread == me || before.epoch < epoch) return true;
  return before.thread / kLanes == me / kLanes && times[me][before.thread % kLanes] >= before.time;
}

void keep(Record (&last)[2], const Record& now) {
  const bool again = last[0].thread == now.thread && last[0].block == now.block;
  if (!again) last[1] = last[0];
  last[0] = now;
}

const char* name(Access access) {
  return access == Access::kRead ? "read" : access == Access::kWrite ? "write" : "atomic access";
}

const void* address(const Record& record) {
  return reinterpret_cast<const void*>(module().begin + record.pc);
}

[[noreturn]] void race(const Region& region, const Record& before, const char* was, Access now,
                       const void* pc) {
  const bool here = before.block == block_stamp;
  fault("race on " + region.what + ": a " + was + " at " + source_line(address(before)) + " by " +
            thread_name(before.thread) + (here ? "" : " of another block") +
            " is not ordered with the " + name(now),
        pc);
}

[[noreturn]] void outside(uintptr_t at, size_t size, Access access, const void* pc) {
  std::string where;
  for (const auto* regions : {&arrays, &buffers}) {
    for (const Region& region : *regions) {
      const int64_t after = at - region.range.end, before = region.range.begin - at;
      if (after >= 0 && after < 4096) {
        where += ", " + std::to_string(after) + " bytes behind " + region.what;
      } else if (before > 0 && before <= 4096) {
        where += ", " + std::to_string(before) + " bytes before " + region.what;
      } else if (region.range.has(at)) {
        where += ", across the end of " + region.what;
      }
    }
  }
  fault("out of bounds: " + std::string(name(access)) + " of " + std::to_string(size) + " bytes" +
            (where.empty() ? " in none of the call's buffers" : where),
        pc);
}

const Region* find(const std::vector<Region>& regions, uintptr_t at, size_t size) {
  auto next = std::upper_bound(regions.begin(), regions.end(), Region{{at, at}, 1, true, {}});
  if (next == regions.begin() || !std::prev(next)->range.has(at, size)) return nullptr;
  return &*std::prev(next);
}

// Two of a call's tensors may share memory.
std::vector<Region> merged(std::vector<Region> regions) {
  std::sort(regions.begin(), regions.end());
  std::vector<Region> result;
  for (const Region& region : regions) {
    if (result.empty() || region.range.begin >= result.back().range.end) {
      result.push_back(region);
      continue;
    }
    Region& whole = result.back();
    whole.range.end = std::max(whole.range.end, region.range.end);
    whole.cell_bytes = std::min(whole.cell_bytes, region.cell_bytes);
    whole.writes |= region.writes;
  }
  return result;
}

// The arrays of static shared memory, by their symbols: offset and size in it, and name.
const std::vector<Region>& symbols() {
  static const std::vector<Region> found = [] {
    std::ifstream file(module_path(), std::ios::binary);
    const std::string image{std::istreambuf_iterator<char>(file), {}};
    const auto* header = reinterpret_cast<const Elf64_Ehdr*>(image.data());
    const auto* sections = reinterpret_cast<const Elf64_Shdr*>(image.data() + header->e_shoff);
    std::vector<Region> result;
    for (int i = 0; i < header->e_shnum; ++i) {
      if (sections[i].sh_type != SHT_SYMTAB) continue;
      const auto* symbol = reinterpret_cast<const Elf64_Sym*>(image.data() + sections[i].sh_offset);
      const char* names = image.data() + sections[sections[i].sh_link].sh_offset;
      for (size_t k = 0; k < sections[i].sh_size / sizeof(Elf64_Sym); ++k, ++symbol) {
        if (ELF64_ST_TYPE(symbol->st_info) != STT_TLS || symbol->st_shndx == SHN_UNDEF) continue;
        char* readable = abi::__cxa_demangle(names + symbol->st_name, nullptr, nullptr, nullptr);
        const std::string known = readable ? readable : names + symbol->st_name;
        std::free(readable);
        const size_t scope = known.rfind("::");
        const std::string last = scope == std::string::npos ? known : known.substr(scope + 2);
        const bool hidden = known.starts_with("guard variable");  // of arrays of classes
        result.push_back({{symbol->st_value, symbol->st_value + symbol->st_size},
                          1,
                          true,
                          hidden ? "" : "shared array '" + last + "'"});
      }
    }
    return result;
  }();
  return found;
}

// An aggregate is copied as a whole, with gaps that nobody writes.
void check_range(const void* p, size_t size, Access access, const void* pc, bool aggregate) {
  if (!in_kernel()) return;
  if (expired) fault(kEndless, pc);
  const auto at = reinterpret_cast<uintptr_t>(p);
  if (stack().has(at, size) || module().has(at, size)) return;
  const bool shared = shared_memory.has(at) || dynamic_memory.has(at);
  const Region* region = find(shared ? arrays : buffers, at, size);
  if (!region) outside(at, size, access, pc);
  if (region->what.empty()) return;
  if (access != Access::kRead && !region->writes) {
    fault("write to " + region->what + ", which the call only reads", pc);
  }
  const int me = rank();
  const uint32_t stamp = shared ? block_stamp : launch_stamp;
  const Record now = {block_stamp,
                      static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pc) - module().begin),
                      epoch, times[me][me % kLanes], static_cast<uint16_t>(me)};
  const size_t offset = at - region->range.begin;
  Cell* cell = &cells[region->first_cell + offset / region->cell_bytes];
  Cell* const end =
      &cells[region->first_cell] + (offset + size + region->cell_bytes - 1) / region->cell_bytes;
  bool known = false;
  for (; cell != end; ++cell) {
    if (cell->stamp != stamp) *cell = {stamp, {}, {}, {}};
    const bool written = cell->write.pc || cell->atomics[0].pc;
    known |= written;
    if (shared && access != Access::kWrite && !written && !aggregate) {
      fault(std::string(name(access)) + " of " + region->what + " that nobody has written", pc);
    }
    if (cell->write.pc && !ordered(cell->write, me))
      race(*region, cell->write, "write", access, pc);
    for (int i = 0; i < 2; ++i) {
      const Record &read = cell->reads[i], &atomic = cell->atomics[i];
      if (access != Access::kRead && read.pc && !ordered(read, me)) {
        race(*region, read, "read", access, pc);
      }
      if (access != Access::kAtomic && atomic.pc && !ordered(atomic, me)) {
        race(*region, atomic, "atomic access", access, pc);
      }
    }
    if (access == Access::kWrite) {
      *cell = {stamp, now, {}, {}};  // what is ordered before it need not be known any more
    } else {
      keep(access == Access::kRead ? cell->reads : cell->atomics, now);
    }
  }
  if (shared && access == Access::kRead && !known) {
    fault("read of " + region->what + " that nobody has written", pc);
  }
}

}  // namespace

void check(const void* at, size_t size, Access access, const void* pc) {
  check_range(at, size, access, pc, false);
}

void check_launch(Range static_shared, Range dynamic_shared) {
  shared_memory = static_shared;
  dynamic_memory = dynamic_shared;
  launch_stamp = ++serial;
  {
    const std::lock_guard<std::mutex> guard(registering);
    buffers = merged(registered[pthread_self()]);
  }
  arrays = symbols();
  for (Region& array : arrays) {
    array.range = {array.range.begin + static_shared.begin, array.range.end + static_shared.begin};
  }
  if (dynamic_shared.end > dynamic_shared.begin) {
    arrays.push_back({dynamic_shared, 1, true, "dynamic shared memory"});
  }
  std::sort(arrays.begin(), arrays.end());
  size_t count = 0;
  for (auto* regions : {&arrays, &buffers}) {
    for (Region& region : *regions) {
      region.first_cell = count;
      count += (region.range.end - region.range.begin) / region.cell_bytes + 1;
    }
  }
  if (cells.size() < count) cells.resize(count);
}

void check_block() {
  block_stamp = ++serial;
  epoch = 0;
  check_block_barrier();
}

void check_block_barrier() {
  ++epoch;
  std::memset(times, 0, sizeof(times));
  for (int i = 0; i < kMostThreads; ++i) times[i][i % kLanes] = 1;
}

void check_warp_barrier(int warp, uint32_t lanes) {
  uint16_t joined[kLanes] = {};
  for (int i = 0; i < kLanes; ++i) {
    for (int k = 0; k < kLanes && lanes >> i & 1; ++k) {
      joined[k] = std::max(joined[k], times[warp * kLanes + i][k]);
    }
  }
  for (int i = 0; i < kLanes; ++i) {
    if (!(lanes >> i & 1)) continue;
    std::copy(joined, joined + kLanes, times[warp * kLanes + i]);
    ++times[warp * kLanes + i][i];
  }
}

void check_memset(const void* at, size_t size) {
  const std::lock_guard<std::mutex> guard(registering);
  const std::vector<Region> known = merged(registered[pthread_self()]);
  const Region* region = find(known, reinterpret_cast<uintptr_t>(at), size);
  if (!region || !region->writes) {
    fault("out of bounds: " + std::to_string(size) + " bytes are set beyond the call's buffers");
  }
}

void forget_writes(const void* at, size_t size) {
  const auto begin = reinterpret_cast<uintptr_t>(at);
  const Region* region = find(arrays, begin, size);
  for (size_t i = 0; region && i < size; ++i) {  // (the cells of shared memory have one byte)
    Cell& cell = cells[region->first_cell + begin - region->range.begin + i];
    cell.write = {};
    cell.atomics[0] = cell.atomics[1] = {};
  }
}

void may_touch(const void* data, size_t bytes, size_t element, bool writes, std::string what) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const std::lock_guard<std::mutex> guard(registering);
  registered[pthread_self()].push_back(
      {{begin, begin + bytes}, element < 2 ? 1 : 2, writes, "the buffer " + what});
}

void call_ends() {
  const std::lock_guard<std::mutex> guard(registering);
  registered.erase(pthread_self());
}

}  // namespace cuda_host

// ---- What instrumented code calls ----

using cuda_host::Access;

extern "C" {

#define CALLER __builtin_return_address(0)
#define ACCESSES(size)                                              \
  void __tsan_read##size(void* p) {                                 \
    cuda_host::check_range(p, size, Access::kRead, CALLER, false);  \
  }                                                                 \
  void __tsan_write##size(void* p) {                                \
    cuda_host::check_range(p, size, Access::kWrite, CALLER, false); \
  }
#define UNALIGNED_ACCESSES(size)                                    \
  ACCESSES(size)                                                    \
  void __tsan_unaligned_read##size(void* p) {                       \
    cuda_host::check_range(p, size, Access::kRead, CALLER, false);  \
  }                                                                 \
  void __tsan_unaligned_write##size(void* p) {                      \
    cuda_host::check_range(p, size, Access::kWrite, CALLER, false); \
  }
ACCESSES(1)
UNALIGNED_ACCESSES(2)
UNALIGNED_ACCESSES(4)
UNALIGNED_ACCESSES(8)
UNALIGNED_ACCESSES(16)
void __tsan_read_range(void* p, size_t size) {
  cuda_host::check_range(p, size, Access::kRead, CALLER, true);
}
void __tsan_write_range(void* p, size_t size) {
  cuda_host::check_range(p, size, Access::kWrite, CALLER, true);
}
void __tsan_init() {}
// Of the host's code: virtual destructors, the counts of shared pointers, static variables.
char __tsan_atomic8_load(const volatile char* p, int) {
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
void __tsan_vptr_update(void*, void*) {}
int __tsan_atomic32_fetch_add(volatile int* p, int value, int) {
  return __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST);
}

// What the data of every report begins with.
struct Source {
  const char* file;
  uint32_t line, column;
};

static void report(const Source* source, const std::string& what) {
  if (!cuda_host::in_kernel()) return;
  cuda_host::fault(cuda_host::described(what.c_str(), {source->file, int(source->line)}));
}
void __ubsan_handle_out_of_bounds(Source* source, uintptr_t index) {
  report(source, "out of bounds: index " + std::to_string(static_cast<int64_t>(index)));
}
void __ubsan_handle_type_mismatch_v1(Source* source, uintptr_t at) {
  report(source, "misaligned access, address ending in " + std::to_string(at % 256));
}
#define OVERFLOWS(operation, what)                                                   \
  void __ubsan_handle_##operation##_overflow(Source* source, uintptr_t, uintptr_t) { \
    report(source, "integer overflow of a " what);                                   \
  }
OVERFLOWS(add, "sum")
OVERFLOWS(sub, "difference")
OVERFLOWS(mul, "product")
OVERFLOWS(negate, "negation")
OVERFLOWS(divrem, "quotient")
}
