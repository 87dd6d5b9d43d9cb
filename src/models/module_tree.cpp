// The tree's constructors, its walk, and torch's nn.Module.__repr__ with its folding of equal neighbours.
#include "models/module_tree.h"

#include <fmt/format.h>

#include <algorithm>

namespace nibble::models {
namespace {

using Visit = std::function<void(const std::string&, const ModuleSpec&)>;
using ClassOf = std::function<std::string(const std::string&, const ModuleSpec&)>;

void walk(const std::string& path, const ModuleSpec& module, const Visit& visit) {
  visit(path, module);
  for (const ModuleSpec& child : module.children) walk(join(path, child.name), child, visit);
}

std::string indented(const std::string& text) {
  std::string result;
  for (const char c : text) {
    result += c;
    if (c == '\n') result += "  ";
  }
  return result;
}

std::string repr(const std::string& path, const ModuleSpec& module, const ClassOf& class_of) {
  const std::string name = class_of(path, module);
  if (module.children.empty()) return leaf_repr(module, name);
  std::string lines;
  const auto add = [&](const std::string& label, const std::string& text) {
    lines += "  (" + label + "): " + indented(text) + "\n";
  };
  const bool folds = module.kind == ModuleKind::module_list;
  for (size_t i = 0; i < module.children.size();) {
    const std::string text = repr(join(path, module.children[i].name), module.children[i], class_of);
    size_t end = i + 1;
    while (folds && end < module.children.size() &&
           repr(join(path, module.children[end].name), module.children[end], class_of) == text)
      ++end;
    if (end - i > 1)
      add(module.children[i].name + "-" + module.children[end - 1].name, fmt::format("{} x {}", end - i, text));
    else
      add(module.children[i].name, text);
    i = end;
  }
  return name + "(\n" + lines + ")";
}

}  // namespace

void for_each_module(const ModelSpec& spec, const Visit& visit) { walk("", spec.root, visit); }

const ModuleSpec* find_module(const ModelSpec& spec, std::string_view path) {
  const ModuleSpec* module = &spec.root;
  while (!path.empty()) {
    const size_t dot = path.find('.');
    const std::string_view head = path.substr(0, dot);
    const ModuleSpec* next = nullptr;
    for (const ModuleSpec& child : module->children)
      if (child.name == head) next = &child;
    if (!next) return nullptr;
    module = next;
    path = dot == std::string_view::npos ? std::string_view{} : path.substr(dot + 1);
  }
  return module;
}

std::string leaf_repr(const ModuleSpec& module, const std::string& class_name) {
  const bool is_renamed = class_name != module.class_name && !module.quantized_detail.empty();
  return class_name + "(" + (is_renamed ? module.quantized_detail : module.detail) + ")";
}

std::string join(const std::string& path, const std::string& name) { return path.empty() ? name : path + "." + name; }

std::string print_tree(const ModelSpec& spec, const ClassOf& class_of) { return repr("", spec.root, class_of); }

std::string python_float(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

ModuleSpec container(std::string name, std::string class_name, std::vector<ModuleSpec> children,
                     std::vector<BufferSpec> buffers) {
  ModuleSpec module;
  module.kind = class_name == "ModuleList" ? ModuleKind::module_list : ModuleKind::container;
  module.name = std::move(name);
  module.class_name = std::move(class_name);
  module.children = std::move(children);
  module.buffers = std::move(buffers);
  return module;
}

ModuleSpec module_list(std::string name, const std::string& class_name, int64_t count,
                       const std::vector<ModuleSpec>& children) {
  std::vector<ModuleSpec> modules;
  for (int64_t i = 0; i < count; ++i) modules.push_back(container(std::to_string(i), class_name, children));
  return container(std::move(name), "ModuleList", std::move(modules));
}

ModuleSpec conv1d(std::string name, int64_t in_features, int64_t out_features) {
  ModuleSpec module;
  module.kind = ModuleKind::linear;
  module.name = std::move(name);
  module.class_name = "Conv1D";
  module.detail = fmt::format("nf={}, nx={}", out_features, in_features);
  module.quantized_detail = fmt::format("in_features={}, out_features={}, bias=True", in_features, out_features);
  module.parameters = {{"weight", {in_features, out_features}}, {"bias", {out_features}}};
  module.is_transposed = true;
  return module;
}

Shape weight_shape(const ModuleSpec& linear) {
  Shape shape = linear.parameters[0].shape;
  if (linear.is_transposed) std::swap(shape[0], shape[1]);
  return shape;
}

ModuleSpec linear(std::string name, int64_t in_features, int64_t out_features, bool has_bias) {
  ModuleSpec module;
  module.kind = ModuleKind::linear;
  module.name = std::move(name);
  module.class_name = "Linear";
  module.detail =
      fmt::format("in_features={}, out_features={}, bias={}", in_features, out_features, has_bias ? "True" : "False");
  module.parameters.push_back({"weight", {out_features, in_features}});
  if (has_bias) module.parameters.push_back({"bias", {out_features}});
  return module;
}

ModuleSpec embedding(std::string name, int64_t count, int64_t dim, std::optional<int64_t> padding_idx) {
  ModuleSpec module;
  module.kind = ModuleKind::embedding;
  module.name = std::move(name);
  module.class_name = "Embedding";
  module.detail = fmt::format("{}, {}", count, dim);
  if (padding_idx)
    module.detail += fmt::format(", padding_idx={}", *padding_idx < 0 ? *padding_idx + count : *padding_idx);
  module.parameters.push_back({"weight", {count, dim}});
  return module;
}

ModuleSpec rms_norm(std::string name, std::string class_name, int64_t size, double eps) {
  ModuleSpec module;
  module.kind = ModuleKind::norm;
  module.name = std::move(name);
  module.class_name = std::move(class_name);
  module.detail = fmt::format("({},), eps={}", size, python_float(eps));
  module.parameters.push_back({"weight", {size}});
  return module;
}

ModuleSpec layer_norm(std::string name, int64_t size, double eps, Affine affine) {
  ModuleSpec module;
  module.kind = ModuleKind::norm;
  module.name = std::move(name);
  module.class_name = "LayerNorm";
  module.detail =
      fmt::format("({},), eps={}, elementwise_affine={}, bias={}", size, python_float(eps),
                  affine == Affine::none ? "False" : "True", affine == Affine::weight_and_bias ? "True" : "False");
  if (affine != Affine::none) module.parameters.push_back({"weight", {size}});
  if (affine == Affine::weight_and_bias) module.parameters.push_back({"bias", {size}});
  return module;
}

ModuleSpec dropout(std::string name, double p) {
  ModuleSpec module = plain_module(std::move(name), "Dropout");
  module.detail = fmt::format("p={}, inplace=False", python_float(p));
  return module;
}

ModuleSpec plain_module(std::string name, std::string_view class_name, std::vector<BufferSpec> buffers) {
  ModuleSpec module;
  module.kind = ModuleKind::other;
  module.name = std::move(name);
  module.class_name = class_name;
  module.buffers = std::move(buffers);
  return module;
}

std::string stored_name(const ModelSpec& spec, const std::string& name) {
  for (const auto& [ours, theirs] : spec.aliases)
    if (name.starts_with(ours) && name.size() > ours.size() && name[ours.size()] == '.')
      return theirs + name.substr(ours.size());
  return name;
}

DType parameter_dtype(const ModelSpec& spec, std::string_view path, DType dtype) {
  const size_t dot = path.rfind('.');
  const std::string_view name = dot == std::string_view::npos ? path : path.substr(dot + 1);
  const bool is_kept = std::find(spec.keep_in_fp32.begin(), spec.keep_in_fp32.end(), name) != spec.keep_in_fp32.end();
  return dtype == DType::f16 && is_kept ? DType::f32 : dtype;
}

const std::string& resolve_tied(const ModelSpec& spec, const std::string& name) {
  for (const auto& [tied, original] : spec.tied)
    if (tied == name) return original;
  return name;
}

}  // namespace nibble::models
