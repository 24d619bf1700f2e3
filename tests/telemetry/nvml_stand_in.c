/* A stand-in for libnvidia-ml.so.1: one card whose values come from a file, so that the real bindings can be driven.

   The file that $NVML_STAND_IN names has a line for each metric: `power 42000` answers with the value, `power !15` with
   that error code; a metric without a line is not supported (3). What was done to the library goes into the same name
   with `.log` appended: init, shutdown, set N. A limit that was set is what is answered from then on. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };

static int begun = 0;
static char card;

static FILE *open_log(const char *mode) {
    char path[4096];
    snprintf(path, sizeof path, "%s.log", getenv("NVML_STAND_IN"));
    return fopen(path, mode);
}

static void note(const char *what, unsigned value) {
    FILE *log = open_log("a");
    if (log == NULL) return;
    fprintf(log, strcmp(what, "set") ? "%s\n" : "%s %u\n", what, value);
    fclose(log);
}

static int look(const char *metric, long long *value) {
    char line[256], name[128], said[100];
    int code = NOT_SUPPORTED;
    FILE *file = fopen(getenv("NVML_STAND_IN"), "r");
    if (file == NULL) return NOT_SUPPORTED;
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "%127s %99s", name, said) != 2 || strcmp(name, metric)) continue;
        code = said[0] == '!' ? atoi(said + 1) : SUCCESS;
        if (code == SUCCESS) *value = atoll(said);
    }
    fclose(file);
    return code;
}

static int ask(const char *metric, long long *value) {
    return begun ? look(metric, value) : UNINITIALIZED;
}

static int ask_uint(const char *metric, unsigned *out) {
    long long value = 0;
    int code = ask(metric, &value);
    if (code == SUCCESS) *out = (unsigned)value;
    return code;
}

static int ask_u64(const char *metric, unsigned long long *out) {
    long long value = 0;
    int code = ask(metric, &value);
    if (code == SUCCESS) *out = (unsigned long long)value;
    return code;
}

static int find(void **device) {
    long long unused = 0;
    int code = ask("card", &unused);
    if (code == SUCCESS) *device = &card;
    return code;
}

int nvmlInitWithFlags(unsigned flags) {
    long long unused = 0;
    int code = look("init", &unused);
    (void)flags;
    if (code != SUCCESS && code != NOT_SUPPORTED) return code;
    begun++;
    note("init", 0);
    return SUCCESS;
}

int nvmlShutdown(void) {
    if (!begun) return UNINITIALIZED;
    begun--;
    note("shutdown", 0);
    return SUCCESS;
}

const char *nvmlErrorString(int code) { (void)code; return "an error of the stand-in"; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { return index ? NOT_FOUND : find(device); }

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    return strcmp(uuid, "GPU-stand-in") ? NOT_FOUND : find(device);
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) { (void)device; return ask_uint("power", milliwatts); }

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *degrees) {
    (void)device;
    return sensor ? INVALID_ARGUMENT : ask_uint("temperature", degrees);
}

int nvmlDeviceGetTemperatureThreshold(void *device, int kind, unsigned *degrees) {
    (void)device;
    return kind == 1 ? ask_uint("slowdown", degrees) : INVALID_ARGUMENT;
}

struct margin { unsigned version; int degrees; };

int nvmlDeviceGetMarginTemperature(void *device, struct margin *margin) {
    long long value = 0;
    int code = ask("margin", &value);
    (void)device;
    if (margin->version != (sizeof(struct margin) | (1u << 24))) return 25;
    if (code == SUCCESS) margin->degrees = (int)value;
    return code;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    (void)device;
    return ask_u64("energy", millijoules);
}

int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons) {
    (void)device;
    return ask_u64("reasons", reasons);
}

int nvmlDeviceGetPowerManagementLimit(void *device, unsigned *milliwatts) {
    char line[256];
    int code = ask_uint("limit", milliwatts);
    FILE *log = open_log("r");
    (void)device;
    if (log == NULL) return code;
    while (fgets(line, sizeof line, log))
        if (code == SUCCESS) sscanf(line, "set %u", milliwatts);
    fclose(log);
    return code;
}

int nvmlDeviceGetPowerManagementLimitConstraints(void *device, unsigned *least, unsigned *most) {
    int code = ask_uint("least", least);
    (void)device;
    return code == SUCCESS ? ask_uint("most", most) : code;
}

int nvmlDeviceSetPowerManagementLimit(void *device, unsigned milliwatts) {
    unsigned least = 0, most = 0;
    long long unused = 0;
    int code = ask("set", &unused);
    (void)device;
    if (code != SUCCESS && code != NOT_SUPPORTED) return code;
    if (ask_uint("least", &least) || ask_uint("most", &most)) return NOT_SUPPORTED;
    if (milliwatts < least || milliwatts > most) return INVALID_ARGUMENT;
    note("set", milliwatts);
    return SUCCESS;
}
