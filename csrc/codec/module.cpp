// vsegops._codec: the motion vectors of a codec (NumPy) to a dense backward flow field.
//
// A field of numbers that come out of a stranger's file: every one is checked or clipped here, none
// is trusted to stay inside the frame.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

namespace {

// Values saturate here: far outside any frame, and sums of a few still fit 64 bits.
constexpr int64_t kFar = int64_t{1} << 40;
constexpr int64_t kMaxSize = INT32_MAX;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One integer field of a NumPy record, of any width and signedness, aligned or not.
class Column {
 public:
  Column(const py::dtype& record, const char* name) : name_(name) {
    py::object fields = record.attr("fields");
    if (fields.is_none() || !fields.contains(name))
      throw py::value_error("vectors: expected a structured array with a field '" + name_ +
                            "', got dtype " + py::str(record).cast<std::string>());
    py::tuple entry = fields[py::str(name)];
    py::dtype type = entry[0];
    offset_ = entry[1].cast<py::ssize_t>();
    size_ = type.itemsize();
    is_signed_ = type.kind() == 'i';
    if ((type.kind() != 'i' && type.kind() != 'u') || !type.attr("isnative").cast<bool>())
      throw py::value_error("vectors: expected integers in native byte order in the field '" +
                            name_ + "', got " + py::str(type).cast<std::string>());
  }

  int64_t operator()(const char* row) const {
    const char* at = row + offset_;
    switch (size_) {
      case 1: return is_signed_ ? load<int8_t>(at) : load<uint8_t>(at);
      case 2: return is_signed_ ? load<int16_t>(at) : load<uint16_t>(at);
      case 4:  // not one conditional: its common type would be unsigned
        if (is_signed_) return load<int32_t>(at);
        return load<uint32_t>(at);
      default:
        if (is_signed_) return std::clamp(load<int64_t>(at), -kFar, kFar);
        return static_cast<int64_t>(std::min(load<uint64_t>(at), uint64_t{kFar}));
    }
  }

  const std::string& name() const { return name_; }

 private:
  template <typename T>
  static T load(const char* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }

  std::string name_;
  py::ssize_t offset_ = 0;
  py::ssize_t size_ = 0;
  bool is_signed_ = false;
};

[[noreturn]] void refuse(const Column& column, int64_t index, const char* expected, int64_t got) {
  throw std::invalid_argument("vectors['" + column.name() + "'][" + std::to_string(index) +
                              "]: expected " + expected + ", got " + std::to_string(got));
}

// A block of the frame, already clipped to it (empty if it lies outside), and where it came from.
struct Block {
  int64_t left, right, top, bottom;
  float flow_x, flow_y;  // in pixels, backward
};

class Vectors {
 public:
  explicit Vectors(const py::array& array)
      : source_(array.dtype(), "source"),
        w_(array.dtype(), "w"),
        h_(array.dtype(), "h"),
        dst_x_(array.dtype(), "dst_x"),
        dst_y_(array.dtype(), "dst_y"),
        motion_x_(array.dtype(), "motion_x"),
        motion_y_(array.dtype(), "motion_y"),
        motion_scale_(array.dtype(), "motion_scale"),
        data_(static_cast<const char*>(array.data())),
        stride_(array.strides(0)),
        count_(array.shape(0)) {}

  int64_t count() const { return count_; }

  // Each number is read once, so that a caller who writes to the array meanwhile hurts nobody.
  Block block(int64_t index, int64_t height, int64_t width) const {
    const char* row = data_ + index * stride_;
    const int64_t source = source_(row), w = w_(row), h = h_(row), scale = motion_scale_(row);
    if (source >= 0)
      refuse(source_, index,
             "a negative number, a reference to the past (a B-frame refers to the future as well; "
             "encode without B-frames)",
             source);
    if (w <= 0) refuse(w_, index, "a positive block width", w);
    if (h <= 0) refuse(h_, index, "a positive block height", h);
    if (scale <= 0) refuse(motion_scale_, index, "a positive number of steps per pixel", scale);
    const int64_t left = dst_x_(row) - w / 2, top = dst_y_(row) - h / 2;  // dst is the centre
    return {std::clamp<int64_t>(left, 0, width),
            std::clamp<int64_t>(left + w, 0, width),
            std::clamp<int64_t>(top, 0, height),
            std::clamp<int64_t>(top + h, 0, height),
            static_cast<float>(static_cast<double>(motion_x_(row)) / scale),
            static_cast<float>(static_cast<double>(motion_y_(row)) / scale)};
  }

 private:
  Column source_, w_, h_, dst_x_, dst_y_, motion_x_, motion_y_, motion_scale_;
  const char* data_;
  int64_t stride_, count_;
};

// The flow field while it is summed: per cell the covered area, and the flow times that area.
struct Field {
  int64_t height, width, stride;  // of the frame, and of a cell, in pixels
  int64_t rows, columns;          // of cells
  float *x, *y;
  bool* mask;
  std::vector<float> area;

  void add(const Block& block) {
    if (block.left == block.right || block.top == block.bottom) return;
    for (int64_t row = block.top / stride; row * stride < block.bottom; ++row) {
      const int64_t tall =
          std::min(block.bottom, (row + 1) * stride) - std::max(block.top, row * stride);
      const int64_t at = row * columns;
      if (stride == 1) {  // the general case below, in a form that vectorises
        for (int64_t i = at + block.left; i < at + block.right; ++i) {
          x[i] += block.flow_x;
          y[i] += block.flow_y;
          area[i] += 1;
        }
        continue;
      }
      for (int64_t column = block.left / stride; column * stride < block.right; ++column) {
        const int64_t wide =
            std::min(block.right, (column + 1) * stride) - std::max(block.left, column * stride);
        const float weight = static_cast<float>(tall * wide);
        x[at + column] += weight * block.flow_x;
        y[at + column] += weight * block.flow_y;
        area[at + column] += weight;
      }
    }
  }

  // Sums to means, in units of a cell; valid where at least half of a cell's part of the frame is
  // covered.
  void finish() {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t tall = std::min(stride, height - row * stride);
      for (int64_t column = 0; column < columns; ++column) {
        const int64_t i = row * columns + column;
        const int64_t wide = std::min(stride, width - column * stride);
        const float covered = area[i];
        mask[i] = 2 * covered >= static_cast<float>(tall * wide);
        if (covered == 0) continue;
        x[i] /= covered * static_cast<float>(stride);
        y[i] /= covered * static_cast<float>(stride);
      }
    }
  }
};

void check_size(const char* name, int64_t value) {
  if (value < 1 || value > kMaxSize)
    throw py::value_error(std::string(name) + ": expected 1 to " + std::to_string(kMaxSize) +
                          ", got " + std::to_string(value));
}

py::tuple rasterize(const py::object& vectors, int64_t height, int64_t width, int64_t stride) {
  check_size("height", height);
  check_size("width", width);
  check_size("stride", stride);
  const int64_t rows = ceil_div(height, stride), columns = ceil_div(width, stride);
  py::array_t<float> flow({int64_t{2}, rows, columns});
  py::array_t<bool> mask({rows, columns});
  const int64_t cells = rows * columns;
  Field field{height,
              width,
              stride,
              rows,
              columns,
              flow.mutable_data(),
              flow.mutable_data() + cells,
              mask.mutable_data(),
              {}};
  std::fill_n(field.x, 2 * cells, 0.0f);
  if (vectors.is_none()) {
    std::fill_n(field.mask, cells, false);
    return py::make_tuple(flow, mask);
  }
  const auto array = py::cast<py::array>(vectors);
  if (array.ndim() != 1)
    throw py::value_error("vectors: expected one dimension, got " + std::to_string(array.ndim()));
  const Vectors list(array);
  {
    py::gil_scoped_release release;
    field.area.assign(cells, 0.0f);
    for (int64_t i = 0; i < list.count(); ++i) field.add(list.block(i, height, width));
    field.finish();
  }
  return py::make_tuple(flow, mask);
}

}  // namespace

PYBIND11_MODULE(_codec, module) {
  module.doc() = "Motion vectors of a codec; the public side is vsegops.models.video.codec.";
  module.def("rasterize", &rasterize, py::arg("vectors"), py::arg("height"), py::arg("width"),
             py::arg("stride"));
}
