#pragma once

#include <pybind11/pybind11.h>

namespace torchconv {

void bind_fast_path(pybind11::module_& module);

}  // namespace torchconv
