#include "tf32.h"

#include <pybind11/pybind11.h>

#include <string>

namespace torchconv {

namespace py = pybind11;

// torch's getter follows "none" to the switches of all cuDNN operators and of all backends.
bool allows_tf32() {
  const py::gil_scoped_acquire gil;
  const py::module_ torch = py::module_::import("torch._C");
  if (!py::hasattr(torch, "_get_fp32_precision_getter")) return torch.attr("_get_cudnn_allow_tf32")().cast<bool>();
  return torch.attr("_get_fp32_precision_getter")("cuda", "conv").cast<std::string>() == "tf32";
}

}  // namespace torchconv
