/* Stands in for NVIDIA's driver library in the tests of src/nvml.rs: no card is needed, and none is spoken to. What its
   functions answer is fixed, or defined on the compiler's command line; with PROCESS it is the first process of a file
   that this names, written as "PID BYTES". Names and layouts are those of nvml.h. */

#include <stdio.h>
#include <string.h>

#ifndef INIT
#define INIT 0
#endif
#ifndef TEMPERATURE
#define TEMPERATURE 0
#endif
#ifndef MIG
#define MIG 0
#endif
#ifndef LOST_AT
#define LOST_AT 0
#endif

enum { INSUFFICIENT_SIZE = 7, LOST = 15 };

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process;

static int readings;

int nvmlInit_v2(void) { return INIT; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int error) { (void)error; return "an error of the stand-in"; }
int nvmlDeviceGetCount_v2(unsigned *count) { readings++; *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { (void)index; *device = &readings; return 0; }
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    (void)device;
    strncpy(name, "Stand-in", length);
    return 0;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, memory *info) {
    (void)device;
    info->total = 8ULL << 30;
    info->used = 3ULL << 30;
    info->free = 5ULL << 30;
    return 0;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *degrees) {
    (void)device, (void)sensor;
    *degrees = 41;
    return TEMPERATURE;
}
int nvmlDeviceGetUtilizationRates(void *device, utilization *rates) {
    (void)device;
    rates->gpu = 73;
    rates->memory = 10;
    return readings == LOST_AT ? LOST : 0;
}
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    (void)device;
    *current = *pending = 0;
    return MIG;
}

static int list(const process *all, unsigned length, unsigned *count, process *to) {
    if (*count < length) {
        *count = length;
        return INSUFFICIENT_SIZE;
    }
    memcpy(to, all, length * sizeof *all);
    *count = length;
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process *to) {
    process all[] = {{100, 2ULL << 30, 0, 0}, {200, ~0ULL, 0, 0}};
    (void)device;
#ifdef PROCESS
    FILE *file = fopen(PROCESS, "r");
    if (file) {
        fscanf(file, "%u %llu", &all[0].pid, &all[0].used);
        fclose(file);
    }
#endif
    return list(all, 2, count, to);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, process *to) {
    static const process all[] = {{100, 2ULL << 30, 0, 0}};
    (void)device;
    return list(all, 1, count, to);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *device, unsigned *count, process *to) {
    static const process all[] = {{300, 1ULL << 20, 0, 0}};
    (void)device;
    return list(all, 1, count, to);
}
