// nibble info: devices, instruction sets, formats, architectures and the kernel table.
#include <iostream>

#include "command.h"

namespace nibble::cli {
namespace {

Json to_json(const SystemInfo& info) {
  Json json{{"version", version()},
            {"devices", Json::array()},
            {"isa", ""},
            {"isas", Json::array()},
            {"kernels", Json::object()}};
  for (const auto& device : info.devices)
    json["devices"].push_back({{"name", device.name},
                               {"description", device.description},
                               {"memory_bytes", device.memory_bytes},
                               {"free_memory_bytes", device.free_memory_bytes}});
  json["auto_device"] = info.cuda.missing.empty() ? "cuda" : "cpu";
  json["cuda"] = {{"missing", info.cuda.missing},
                  {"driver", info.cuda.driver},
                  {"runtime", info.cuda.runtime},
                  {"cublas_lt", info.cuda.cublas_lt}};
  for (const auto& isa : info.isas) {
    json["isas"].push_back({{"name", isa.name}, {"supported", isa.is_supported}, {"active", isa.is_active}});
    if (isa.is_active) json["isa"] = isa.name;
  }
  for (const auto& row : info.kernels) json["kernels"][row.entry] = row.backends;
  json["formats"] = info.formats;
  json["architectures"] = info.architectures;
  json["threads"] = info.threads;
  return json;
}

void print(const SystemInfo& info) {
  std::cout << "nibble " << version() << "\n\ndevices\n";
  for (const auto& device : info.devices)
    std::cout << "  " << device.name << ": " << device.description << ", " << human_size(device.memory_bytes)
              << " memory, " << human_size(device.free_memory_bytes) << " free"
              << (device.name == "cpu" ? fmt::format(", {} threads", info.threads) : "") << '\n';
  if (!info.cuda.missing.empty())
    std::cout << "  cuda: none: " << info.cuda.missing << '\n';
  else
    std::cout << "  CUDA " << info.cuda.runtime << ", the driver supports " << info.cuda.driver << '\n'
              << (info.cuda.cublas_lt.empty()
                      ? "  cuBLASLt: not found (libcublasLt.so.13 or .12): prompts are read a little "
                        "slower, training takes many times as long"
                      : "  cuBLASLt " + info.cuda.cublas_lt)
              << '\n';
  std::cout << "  --device auto: "
            << (info.cuda.missing.empty() ? "the first GPU with room for the model, else the CPU" : "the CPU") << '\n';
  std::cout << "\ninstruction sets\n";
  for (const auto& isa : info.isas)
    std::cout << "  " << isa.name
              << (isa.is_active      ? " (in use)"
                  : isa.is_supported ? ""
                                     : " (not on this processor)")
              << '\n';
  const auto list = [](const char* title, const std::vector<std::string>& names) {
    std::cout << '\n' << title << "\n ";
    for (const auto& name : names) std::cout << ' ' << name;
    std::cout << '\n';
  };
  list("formats", info.formats);
  list("architectures", info.architectures);
  std::cout << "\nkernels\n";
  for (const auto& row : info.kernels) {
    std::cout << fmt::format("  {:<22}", row.entry) << (row.backends.empty() ? " none of this binary" : "");
    for (const auto& backend : row.backends) std::cout << ' ' << backend;
    std::cout << '\n';
  }
}

}  // namespace

void add_info(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("info", "Devices, instruction sets and kernels of this machine and binary");
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "One JSON object instead of text");
  command->callback([&action, json] {
    action = [json] {
      const SystemInfo info = system_info();
      if (*json)
        print_json(to_json(info));
      else
        print(info);
      return 0;
    };
  });
}

}  // namespace nibble::cli
