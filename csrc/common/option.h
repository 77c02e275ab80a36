// Options that are words: the type of a schema's `str` arguments.
#pragma once

#include <torch/csrc/stable/stableivalue_conversions.h>

#include <string>

namespace vsegops {

// A string. PyTorch's own conversion to std::string, up to 2.13, loses a copy with every call.
struct Option : std::string {
  using std::string::string;
};

}  // namespace vsegops

template <>
struct torch::stable::detail::ToImpl<vsegops::Option> {
  static vsegops::Option call(StableIValue value, uint64_t version, bool is_internal) {
    const auto handle = ToImpl<StringHandle>::call(value, version, is_internal);
    size_t length = 0;
    const char* data = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    const vsegops::Option text(data, length);
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};
