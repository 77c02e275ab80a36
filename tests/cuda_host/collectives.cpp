// What threads do together, or through memory: votes, shuffles, asynchronous copies, matrices.
#include <cstring>
#include <vector>

#include "shim.h"

void __syncwarp(unsigned mask, const char* file, int line) {
  cuda_host::meet_warp("__syncwarp", {file, line}, mask, nullptr, nullptr);
}

namespace cuda_host {

unsigned ballot(const char* what, Site site, unsigned mask, bool predicate) {
  struct Vote {
    bool mine;
    unsigned all;
  } vote = {predicate, 0};
  meet_warp(what, site, mask, &vote, [](uint32_t present, void* const* lanes) {
    unsigned all = 0;
    for (int i = 0; i < kLanes; ++i) {
      if (present >> i & 1) all |= unsigned(static_cast<Vote*>(lanes[i])->mine) << i;
    }
    for (int i = 0; i < kLanes; ++i) {
      if (present >> i & 1) static_cast<Vote*>(lanes[i])->all = all;
    }
  });
  return vote.all;
}

void shuffle(const char* what, Site site, unsigned mask, void* value, size_t size, int from) {
  struct Exchange {
    void* value;
    size_t size;
    int from;
    char received[16];
  } exchange = {value, size, from, {}};
  if (!(mask >> from & 1)) {
    fault(described(what, site) + ": lane " + std::to_string(from) +
          ", whose value is asked for, is not in the mask");
  }
  meet_warp(what, site, mask, &exchange, [](uint32_t present, void* const* lanes) {
    for (int i = 0; i < kLanes; ++i) {
      if (!(present >> i & 1)) continue;
      Exchange* to = static_cast<Exchange*>(lanes[i]);
      if (present >> to->from & 1) {
        std::memcpy(to->received, static_cast<Exchange*>(lanes[to->from])->value, to->size);
      }
    }
  });
  std::memcpy(value, exchange.received, size);
}

// ---- Asynchronous copies ----

namespace {

struct Copy {
  void* to;
  const void* from;
  size_t bytes, zeros, group;
  const void* pc;
};

// Of each thread of the block.
struct {
  std::vector<Copy> copies;  // under way
  size_t groups = 0;         // that were committed
} pending[kMostThreads];

}  // namespace

void drop_copies() {
  for (auto& mine : pending) {
    mine.copies.clear();
    mine.groups = 0;
  }
}

// Until the copy is made nothing is there that makes sense.
void copy_async(void* shared, const void* global, size_t bytes, size_t zeros) {
  const void* pc = __builtin_return_address(0);
  if (zeros < bytes) check(global, bytes - zeros, Access::kRead, pc);
  check(shared, bytes, Access::kWrite, pc);
  if (reinterpret_cast<uintptr_t>(shared) % bytes || reinterpret_cast<uintptr_t>(global) % bytes) {
    fault("misaligned asynchronous copy of " + std::to_string(bytes) + " bytes", pc);
  }
  std::memset(shared, 0xFF, bytes);
  forget_writes(shared, bytes);
  pending[rank()].copies.push_back({shared, global, bytes, zeros, pending[rank()].groups, pc});
}

void commit_copies() { ++pending[rank()].groups; }

void wait_copies(size_t most) {
  std::erase_if(pending[rank()].copies, [&](const Copy& copy) {
    if (copy.group + most >= pending[rank()].groups) return false;
    check(copy.to, copy.bytes, Access::kWrite, copy.pc);
    std::memset(copy.to, 0, copy.bytes);
    std::memcpy(copy.to, copy.from, copy.bytes - copy.zeros);
    return true;
  });
}

// ---- Tensor cores: see csrc/common/tensor_core.h for which lane has what. ----

namespace {

float widened(uint32_t pair, int which, bool bfloat16) {
  const auto bits = static_cast<uint16_t>(pair >> 16 * which);
  return bfloat16 ? __bfloat162float(__ushort_as_bfloat16(bits))
                  : __half2float(__ushort_as_half(bits));
}

}  // namespace

void multiply_add(Site site, float* d, const uint32_t* a, const uint32_t* b, bool bfloat16) {
  struct Tiles {
    float* d;
    const uint32_t *a, *b;
    bool bfloat16;
  } mine = {d, a, b, bfloat16};
  meet_warp("multiply_add", site, ~0u, &mine, [](uint32_t, void* const* lanes) {
    float a[16][16], b[16][8];
    const auto of = [&](int lane) { return *static_cast<Tiles*>(lanes[lane]); };
    for (int i = 0; i < kLanes; ++i) {
      const int g = i / 4, t = 2 * (i % 4);
      for (int k = 0; k < 8; ++k) {  // element k % 2 of register k / 2
        a[g + k / 2 % 2 * 8][t + k / 4 * 8 + k % 2] =
            widened(of(i).a[k / 2], k % 2, of(i).bfloat16);
        if (k < 4) b[t + k / 2 * 8 + k % 2][g] = widened(of(i).b[k / 2], k % 2, of(i).bfloat16);
      }
    }
    for (int i = 0; i < kLanes; ++i) {
      const int g = i / 4, t = 2 * (i % 4);
      for (int k = 0; k < 4; ++k) {
        for (int j = 0; j < 16; ++j) of(i).d[k] += a[g + k / 2 * 8][j] * b[j][t + k % 2];
      }
    }
  });
}

void load_matrices(Site site, uint32_t* out, const void* row, bool transposed) {
  const void* pc = __builtin_return_address(0);
  check(row, 16, Access::kRead, pc);
  if (reinterpret_cast<uintptr_t>(row) % 16) fault("misaligned row of a matrix", pc);
  struct Row {
    uint16_t elements[8];
    uint32_t out[4];
    bool transposed;
  } mine = {{}, {}, transposed};
  std::memcpy(mine.elements, row, 16);
  meet_warp("load_matrices", site, ~0u, &mine, [](uint32_t, void* const* lanes) {
    const auto of = [&](int lane) -> Row& { return *static_cast<Row*>(lanes[lane]); };
    for (int i = 0; i < kLanes; ++i) {
      const int g = i / 4, t = 2 * (i % 4);
      for (int m = 0; m < 4; ++m) {
        const auto at = [&](int y, int x) -> uint32_t { return of(8 * m + y).elements[x]; };
        of(i).out[m] =
            of(i).transposed ? at(t, g) | at(t + 1, g) << 16 : at(g, t) | at(g, t + 1) << 16;
      }
    }
  });
  std::memcpy(out, mine.out, sizeof(mine.out));
}

}  // namespace cuda_host
