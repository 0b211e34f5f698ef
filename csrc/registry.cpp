#include "registry.h"

#include "cpu/registry.h"
#include "cuda/device.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

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

std::vector<std::string> split(const std::string& names) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= names.size();) {
    const size_t end = std::min(names.find(',', begin), names.size());
    parts.push_back(current_name(names.substr(begin, end - begin)));
    begin = end + 1;
  }
  return parts;
}

[[noreturn]] void refuse(const std::string& why) {
  std::string known;
  for (const Implementation& row : implementations()) known += std::string(known.empty() ? "" : ", ") + row.name;
  throw std::runtime_error(why + "; known implementations: " + known);
}

[[noreturn]] void refuse(const std::string& names, const std::string& why) {
  refuse("implementation \"" + names + "\" " + why);
}

bool has_part(const Implementation& row, const std::string& part) {
  return std::string(row.name).find(part) != std::string::npos;
}

// The implementation of this name, or else all whose names contain it.
std::vector<const Implementation*> rows_named(const std::string& name) {
  std::vector<const Implementation*> found;
  for (const Implementation& row : implementations()) {
    if (name == row.name) return {&row};
    if (!name.empty() && has_part(row, name)) found.push_back(&row);
  }
  return found;
}

const Implementation& choose_among(const Conv& conv, Op op, const std::string& names, AnyPlan& plan) {
  std::vector<std::string> wanted, left_out;
  for (const std::string& part : split(names)) {
    if (part.rfind('!', 0) == 0) {
      left_out.push_back(part.substr(1));
    } else {
      wanted.push_back(part);
    }
  }
  const auto is_left_out = [&](const Implementation& row) {
    return std::any_of(left_out.begin(), left_out.end(), [&](const auto& part) { return has_part(row, part); });
  };
  bool of_device = wanted.empty(), available = wanted.empty();
  for (const std::string& name : wanted) {
    const std::vector<const Implementation*> rows = rows_named(name);
    if (rows.empty()) refuse(name, "does not exist");
    const Implementation* able = nullptr;
    for (const Implementation* row : rows) {
      if (row->device != conv.device) continue;
      of_device = true;
      available |= row->available();
      if (is_left_out(*row) || !row->can_plan(conv, op, plan)) continue;
      if (row->suits(conv, op)) return *row;
      if (!able) able = row;
    }
    if (able && able->plan(conv, op, plan)) return *able;
  }
  if (wanted.empty())
    for (const Implementation& row : implementations())
      if (!is_left_out(row) && row.can_plan(conv, op, plan) && row.suits(conv, op)) return row;
  if (!of_device) refuse(names, std::string("is not for tensors on ") + device_name(conv.device));
  if (!available) refuse(names, "cannot run on this machine");
  refuse(names, std::string("does not do this ") + op_name(op) + " problem");
}

}  // namespace

std::string counted(int64_t count, const char* noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

const std::vector<Implementation>& implementations() {
  static const std::vector<Implementation> all = [] {
    std::vector<Implementation> found = cpu::all_implementations();
    for (const Implementation& implementation : cuda::all_implementations()) found.push_back(implementation);
    return found;
  }();
  return all;
}

std::string current_name(std::string name) {
  for (const auto& [old_part, new_part] : {std::pair("slab", "grouped"), std::pair("planes", "spatial")})
    if (const size_t at = name.find(old_part); at != std::string::npos)
      name.replace(at, std::strlen(old_part), new_part);
  return name;
}

const char* device_name(Device device) { return device == Device::cuda ? "cuda" : "cpu"; }

const Implementation& choose(const Conv& conv, Op op, const std::string& names, AnyPlan& plan) {
  if (!names.empty()) return choose_among(conv, op, names, plan);
  for (const Implementation& row : implementations())
    if (row.can_plan(conv, op, plan) && row.suits(conv, op)) return row;
  // Not reached on a device whose reference is available: it supports and suits every problem.
  refuse(std::string("no implementation for tensors on ") + device_name(conv.device) + " can run on this machine");
}

std::string why_not(const Implementation& row, const Conv& conv, Op op) {
  if (!row.available()) return "this machine does not have its instructions";
  if (!row.has(op)) return std::string("it does not have ") + op_name(op);
  if (AnyPlan plan; !row.plan(conv, op, plan)) {
    const bool empty = conv.N == 0 || conv.C == 0 || conv.K == 0 || conv.rows.in == 0 || conv.cols.in == 0;
    return empty ? "it does not do empty tensors" : std::string("it does ") + row.supported;
  }
  return row.suits(conv, op) ? "" : std::string("it is for ") + row.suited;
}

}  // namespace torchconv
