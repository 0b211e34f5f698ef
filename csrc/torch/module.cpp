// torchconv._C: what is not an operator of torch's dispatcher. Importing it also registers those that are
// (library.cpp).
#include "../cpu/instruction_sets.h"
#include "../cpu/parallel.h"
#include "../cpu/scratch.h"
#include "../cuda/device.h"
#include "../operators.h"
#include "fast_path.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace py = pybind11;

namespace torchconv {

namespace {

// Without asking whether they are available: importing torchconv calls no driver.
std::vector<py::dict> list_implementations() {
  std::vector<py::dict> rows;
  for (const Implementation& row : implementations()) {
    std::vector<std::string> ops;
    if (row.forward) ops.push_back("conv2d");
    if (row.grad_input) ops.push_back("conv2d_grad_input");
    if (row.grad_weight) ops.push_back("conv2d_grad_weight");
    py::dict entry;
    entry["name"] = row.name;
    entry["device"] = device_name(row.device);
    entry["ops"] = ops;
    rows.push_back(entry);
  }
  return rows;
}

bool is_available(const std::string& name) {
  for (const Implementation& row : implementations())
    if (row.name == name) return row.available();
  throw py::key_error(name);
}

#ifdef __clang__
constexpr const char* compiler = __VERSION__;  // "Clang 18.1.3 (...)"
#else
constexpr const char* compiler = "GCC " __VERSION__;
#endif

// torchconv/_diagnose.py looks for these words in the file when it cannot be loaded.
const char* const stamp = "torchconv was built with torch " TORCH_VERSION ".";

std::map<std::string, std::string> build_info() {
  return {
      {"version", TORCHCONV_VERSION}, {"torch", TORCH_VERSION},  {"stamp", stamp},
      {"compiler", compiler},         {"cuda", cuda::version()},
  };
}

// Every feature that a kernel needs, and whether this machine has it; none on a machine that is no x86.
std::map<std::string, bool> cpu_features() {
  std::map<std::string, bool> features;
#if defined(__x86_64__)
  for (const cpu::CpuFeature& feature : cpu::cpu_feature_table)
    features[std::string(feature.name)] = cpu::cpu_features() & cpu::cpu_feature(feature.name);
#endif
  return features;
}

struct Choice {
  std::string implementation, plan;                              // its name, and its tiles and blocks in words
  std::vector<std::pair<std::string, std::string>> passed_over;  // implementations before it, and why not
};

// The implementation that an operator would run for operands of these sizes and strides (in elements) on `device`,
// "cpu" or "cuda".
Choice chosen(const std::string& op, const std::string& dtype, const std::vector<int64_t>& a_size,
              const std::vector<int64_t>& a_stride, const std::vector<int64_t>& b_size,
              const std::vector<int64_t>& b_stride, const std::vector<int64_t>& size,
              const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
              const std::vector<int64_t>& dilation, int64_t groups, const std::string& device,
              const std::string& implementation) {
  static const std::map<std::string, Dtype> dtypes = {{"float64", Dtype::float64},
                                                      {"float32", Dtype::float32},
                                                      {"bfloat16", Dtype::bfloat16},
                                                      {"float16", Dtype::float16}};
  const Device where = device == "cuda" ? Device::cuda : Device::cpu;
  const View a{nullptr, int64_t(a_size.size()), a_size.data(), a_stride.data(), where};
  const View b{nullptr, int64_t(b_size.size()), b_size.data(), b_stride.data(), where};
  const Geometry geometry{stride, padding, dilation, groups};
  const Op which = op == "conv2d" ? Op::forward : op == "conv2d_grad_input" ? Op::grad_input : Op::grad_weight;
  const Call call = which == Op::forward ? plan_conv2d(dtypes.at(dtype), a, b, geometry, implementation)
                    : which == Op::grad_input
                        ? plan_grad_input(dtypes.at(dtype), a, b, size, geometry, implementation)
                        : plan_grad_weight(dtypes.at(dtype), a, b, size, geometry, implementation);
  std::vector<std::pair<std::string, std::string>> passed_over;
  for (const Implementation& row : implementations()) {
    if (row.name == std::string(call.implementation->name)) break;
    if (row.device == where) passed_over.emplace_back(row.name, why_not(row, call.conv, which));
  }
  return {call.implementation->name, call.implementation->describe(call.plan, which), passed_over};
}

// The number of threads of torch's pool that a parallel loop of the kernels really runs on.
size_t count_threads() {
  std::mutex mutex;
  std::set<std::thread::id> threads;
  uint32_t most = 1;
  torch_get_num_threads(&most);
  std::atomic<size_t> arrived{0};
  cpu::parallel_for(most, 2 * cpu::work_per_thread, [&](int64_t) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      threads.insert(std::this_thread::get_id());
    }
    // Waits for the others, lest one thread does it all.
    ++arrived;
    const auto patience = std::chrono::steady_clock::now() + std::chrono::milliseconds(200);
    while (arrived < most && std::chrono::steady_clock::now() < patience) std::this_thread::yield();
  });
  return threads.size();
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.def("implementations", &list_implementations);
  module.def("is_available", &is_available);
  module.def("build_info", &build_info);
  module.def("cpu_features", &cpu_features);
  module.def("current_name", &current_name);
  py::class_<Choice>(module, "Choice", py::module_local())
      .def_readonly("implementation", &Choice::implementation)
      .def_readonly("plan", &Choice::plan)
      .def_readonly("passed_over", &Choice::passed_over);
  module.def("chosen", &chosen);
  module.def("scratch_bytes", &cpu::scratch_bytes);
  module.def("take_scratch_need", &cpu::take_scratch_need);
  bind_fast_path(module);
  module.def("count_threads", &count_threads, py::call_guard<py::gil_scoped_release>());
}

}  // namespace torchconv
