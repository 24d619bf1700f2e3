// Settings, injected failures, the count of calls, and the report at exit.
//
// Settings are `key=value`, separated by `;` or new lines: from the environment (STANDIN) and from the file that
// STANDIN_CONTROL names, which is read again whenever it changes, so that a test can lose the context of a process that
// runs. STANDIN_REPORT names the file that a process leaves when it ends: calls, memory, and what the caller did wrong.
#include "standin.h"

#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace standin {
namespace {

// Made once and never freed: threads of streams may still run while the process ends.
struct Record {
    std::mutex mutex;
    Settings settings;
    bool loaded = false;
    struct stat control {};
    std::map<std::string, std::unique_ptr<std::atomic<long>>> calls;
    std::set<std::string> unsupported;
    std::vector<std::string> violations;
};

Record& record() {
    static Record* all = new Record;
    return *all;
}

// `NAME@NTH:CODE` or `NAME@NTH+:CODE`, for kernels also `@NTH:CODE` (any kernel); several with commas.
std::vector<Rule> rules(const std::string& text) {
    std::vector<Rule> list;
    std::stringstream stream(text);
    for (std::string item; std::getline(stream, item, ',');) {
        Rule rule;
        size_t at = item.find('@'), colon = item.find(':');
        rule.name = item.substr(0, at);
        if (at != std::string::npos) {
            std::string nth = item.substr(at + 1, colon == std::string::npos ? colon : colon - at - 1);
            if (!nth.empty() && nth.back() == '+') rule.onwards = true;
            rule.nth = std::atol(nth.c_str());
        }
        rule.code = colon == std::string::npos ? 0 : std::atoi(item.c_str() + colon + 1);
        if (!rule.code) {
            std::fprintf(stderr, "stand-in driver: no rule: %s\n", item.c_str());
            std::abort();
        }
        list.push_back(rule);
    }
    return list;
}

// The code of the first rule that applies; all of them count the call.
int first_hit(std::vector<Rule>& list, const std::string& name) {
    int code = 0;
    for (Rule& rule : list)
        if ((rule.name.empty() || rule.name == name) && rule.hit() && !code) code = rule.code;
    return code;
}

void set(Settings& to, const std::string& key, const std::string& value) {
    if (key == "device_name") to.device_name = value;
    else if (key == "capability") std::sscanf(value.c_str(), "%d.%d", &to.capability_major, &to.capability_minor);
    else if (key == "driver_version") to.driver_version = std::atoi(value.c_str());
    else if (key == "devices") to.devices = std::atoi(value.c_str());
    else if (key == "integrated") to.integrated = value == "1";
    else if (key == "memory_bytes") to.memory_bytes = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "kernels") to.kernels = value;
    else if (key == "operation_ms") to.operation_ms = std::atof(value.c_str());
    else if (key == "kernel_ms") to.kernel_ms = std::atof(value.c_str());
    else if (key == "kernels_held") to.kernels_held = value == "1";
    else if (key == "lost") to.lost = std::atoi(value.c_str());
    else if (key == "fail") to.fail = rules(value);
    else if (key == "kernel_fails") to.kernel_fails = rules(value);
    else if (key == "kernel_hangs") to.kernel_hangs = rules(value);
    else {
        std::fprintf(stderr, "stand-in driver: no setting is called %s\n", key.c_str());
        std::abort();
    }
}

void adopt(Settings& to, const std::string& text) {
    std::string line;
    for (char c : text + "\n") {
        if (c != ';' && c != '\n') {
            line += c;
            continue;
        }
        size_t equals = line.find('=');
        if (equals != std::string::npos) set(to, line.substr(0, equals), line.substr(equals + 1));
        line.clear();
    }
}

void reload_if_changed(Record& all) {
    const char* path = std::getenv("STANDIN_CONTROL");
    struct stat status {};
    bool there = path && ::stat(path, &status) == 0;
    // A file that was replaced twice within a tick of the clock has another inode.
    bool changed = there && (status.st_mtim.tv_sec != all.control.st_mtim.tv_sec ||
                             status.st_mtim.tv_nsec != all.control.st_mtim.tv_nsec ||
                             status.st_ino != all.control.st_ino);
    if (all.loaded && !changed) return;
    all.loaded = true;
    all.settings = Settings();
    if (const char* text = std::getenv("STANDIN")) adopt(all.settings, text);
    if (!there) return;
    all.control = status;
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    adopt(all.settings, text.str());
}

void write_report() {
    const char* path = std::getenv("STANDIN_REPORT");
    if (!path) return;
    guards_hold("the end of the process");
    Accounts memory = accounts();
    Record& all = record();
    std::lock_guard<std::mutex> hold(all.mutex);
    std::ostringstream out;
    const char* comma = "";
    out << "{\"calls\": {";
    for (auto& call : all.calls) {
        out << comma << '"' << call.first << "\": " << call.second->load();
        comma = ", ";
    }
    out << "}, \"unsupported\": [";
    comma = "";
    for (auto& name : all.unsupported) out << comma << '"' << name << '"', comma = ", ";
    out << "], \"violations\": [";
    comma = "";
    for (auto& text : all.violations) out << comma << '"' << text << '"', comma = ", ";
    out << "], \"used_bytes\": " << memory.used_bytes << ", \"peak_bytes\": " << memory.peak_bytes
        << ", \"pinned_bytes\": " << memory.pinned_bytes << ", \"left_behind\": [";
    comma = "";
    for (size_t bytes : memory.left_behind) out << comma << bytes, comma = ", ";
    out << "]}\n";
    std::string part = std::string(path) + ".part";
    std::ofstream(part) << out.str();
    std::rename(part.c_str(), path);
}

__attribute__((destructor)) void at_exit() { write_report(); }

CUresult injected(const std::string& name, bool lost_counts) {
    Record& all = record();
    std::lock_guard<std::mutex> hold(all.mutex);
    reload_if_changed(all);
    if (int code = first_hit(all.settings.fail, name)) return CUresult(code);
    return lost_counts ? CUresult(all.settings.lost) : CUDA_SUCCESS;
}

}  // namespace

Settings settings() {
    Record& all = record();
    std::lock_guard<std::mutex> hold(all.mutex);
    reload_if_changed(all);
    return all.settings;
}

int kernel_rule(const std::string& name) {
    Record& all = record();
    std::lock_guard<std::mutex> hold(all.mutex);
    reload_if_changed(all);
    if (first_hit(all.settings.kernel_hangs, name)) return -1;
    return first_hit(all.settings.kernel_fails, name);
}

Entry::Entry(const char* name) : name_(name) {
    Record& all = record();
    std::lock_guard<std::mutex> hold(all.mutex);
    auto& count = all.calls[name_];
    if (!count) count = std::make_unique<std::atomic<long>>(0);
    count_ = count.get();
}

CUresult Entry::enter_anyway() {
    ++*count_;
    return injected(name_, false);
}

CUresult Entry::enter() {
    ++*count_;
    if (CUresult code = injected(name_, true)) return code;
    if (!initialised()) return CUDA_ERROR_NOT_INITIALIZED;
    return CUresult(sticky().load());
}

long calls_of(const std::string& name) {
    Record& all = record();
    std::lock_guard<std::mutex> hold(all.mutex);
    auto found = all.calls.find(name);
    return found == all.calls.end() ? 0 : found->second->load();
}

void violation(const std::string& text) {
    std::fprintf(stderr, "stand-in driver: %s\n", text.c_str());
    Record& all = record();
    std::lock_guard<std::mutex> hold(all.mutex);
    all.violations.push_back(text);
}

}  // namespace standin

extern "C" {

// For tests that run in the same process: how often an entry point was called, and the bytes in use.
__attribute__((visibility("default"))) long standin_calls(const char* name) { return standin::calls_of(name); }
__attribute__((visibility("default"))) size_t standin_used_bytes() { return standin::accounts().used_bytes; }
__attribute__((visibility("default"))) size_t standin_pinned_bytes() { return standin::accounts().pinned_bytes; }

// Every entry point that the stand-in lacks comes here.
int standin_unsupported(const char* name) {
    standin::Entry(name).enter_anyway();
    auto& all = standin::record();
    std::lock_guard<std::mutex> hold(all.mutex);
    all.unsupported.insert(name);
    return CUDA_ERROR_NOT_SUPPORTED;
}
}
