// This shared library in memory, and the source lines of its code.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "runtime.h"

extern "C" void* __tls_get_addr(void*);

namespace cuda_host {
namespace {

struct Module {
  Range range = {~uintptr_t(0), 0};
  Range local = {0, 0};  // the calling thread's copy of what is thread-local
};

int find_module(dl_phdr_info* info, size_t, void* result) {
  Module found;
  for (const ElfW(Phdr)* p = info->dlpi_phdr; p != info->dlpi_phdr + info->dlpi_phnum; ++p) {
    if (p->p_type == PT_LOAD) {
      const uintptr_t begin = info->dlpi_addr + p->p_vaddr;
      found.range = {std::min(found.range.begin, begin),
                     std::max(found.range.end, begin + p->p_memsz)};
    }
    if (p->p_type == PT_TLS) found.local.end = p->p_memsz;
  }
  if (!found.range.has(reinterpret_cast<uintptr_t>(&find_module))) return 0;
  if (found.local.end > 0) {
    size_t index[2] = {info->dlpi_tls_modid, 0};
    found.local.begin = reinterpret_cast<uintptr_t>(__tls_get_addr(index));
    found.local.end += found.local.begin;
  }
  *static_cast<Module*>(result) = found;
  return 1;
}

Module this_module() {
  Module result;
  dl_iterate_phdr(find_module, &result);
  return result;
}

std::string tidy(const char* path) { return std::filesystem::path(path).lexically_normal(); }

}  // namespace

Range static_shared() { return this_module().local; }

Range module() {
  static const Range range = this_module().range;
  return range;
}

const char* module_path() {
  static Dl_info info;
  if (!info.dli_fname) dladdr(&info, &info);
  return info.dli_fname;
}

std::string source_line(const void* pc) {
  char command[4096];  // (the call that pc is the return address of comes before it)
  std::snprintf(command, sizeof(command), "env -u LD_PRELOAD addr2line -i -e '%s' %#zx",
                module_path(), reinterpret_cast<uintptr_t>(pc) - 1 - module().begin);
  std::string lines;
  FILE* pipe = popen(command, "r");
  for (char line[1024]; pipe && std::fgets(line, sizeof(line), pipe);) {
    line[std::strcspn(line, " \n")] = '\0';
    if (std::strstr(line, "cuda_host/") && std::strstr(line, ".h:")) continue;  // the shim's own
    lines += (lines.empty() ? "" : ", called at ") + tidy(line);
  }
  if (pipe) pclose(pipe);
  return lines;
}

std::string described(const char* what, Site site) {
  return std::string(what) + " at " + tidy(site.file) + ":" + std::to_string(site.line);
}

}  // namespace cuda_host
