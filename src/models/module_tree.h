// Walking and printing the module tree of a ModelSpec.
#pragma once

#include <functional>
#include <string>

#include "models/spec.h"

namespace nibble::models {

/// Calls `visit(path, module)` for every module, parents first, in torch's order; the root's path is empty.
void for_each_module(const ModelSpec& spec,
                     const std::function<void(const std::string& path, const ModuleSpec& module)>& visit);

/// The module at `path`, or nullptr.
const ModuleSpec* find_module(const ModelSpec& spec, std::string_view path);

/// "model.norm" + "weight" -> "model.norm.weight".
std::string join(const std::string& path, const std::string& name);

/// As Python's print(model). `class_of` may rename a module by its path, e.g. to Linear4bit.
std::string print_tree(const ModelSpec& spec,
                       const std::function<std::string(const std::string& path, const ModuleSpec& module)>& class_of);

/// "Linear4bit(in_features=...)": a module without children under the name of its class, or of the one that replaces
/// it.
std::string leaf_repr(const ModuleSpec& module, const std::string& class_name);

/// As Python's repr of a float: shortest digits, ".0" for whole numbers.
std::string python_float(double value);

}  // namespace nibble::models
