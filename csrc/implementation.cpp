#include "implementation.h"

#include <stdexcept>

namespace torchconv {

namespace {

const char* op_name(Op op) {
  switch (op) {
    case Op::forward: return "conv2d";
    case Op::grad_input: return "conv2d_grad_input";
    case Op::grad_weight: return "conv2d_grad_weight";
  }
  return "";
}

[[noreturn]] void refuse(const std::string& name, const std::string& why) {
  std::string known;
  for (const Implementation& row : implementations()) known += std::string(known.empty() ? "" : ", ") + row.name;
  throw std::runtime_error("implementation \"" + name + "\" " + why + "; known implementations: " + known);
}

}  // namespace

const Implementation& choose(const Conv& conv, Op op, const std::string& name) {
  for (const Implementation& row : implementations()) {
    if (!name.empty() && name != row.name) continue;
    if (row.can_do(conv, op)) return row;
    if (!row.available() && !name.empty()) refuse(name, "cannot run on this machine");
    if (!name.empty()) refuse(name, std::string("does not do this ") + op_name(op) + " problem");
  }
  refuse(name, "does not exist");
}

}  // namespace torchconv
