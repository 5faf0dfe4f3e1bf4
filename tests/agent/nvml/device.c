/* Start-up, identity and state of a GPU: each function answers with one line of the scenario. */
#include "scenario.h"

#include <stdio.h>
#include <string.h>

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    begin(__func__);
    struct answer refused = look_up_system("init");
    if (refused.status != NVML_SUCCESS && refused.status != NVML_ERROR_NOT_SUPPORTED)
        return refused.status;
    initialise();
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void) {
    return nvmlInitWithFlags(0);
}

nvmlReturn_t nvmlShutdown(void) {
    return shut_down();
}

const char *nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NO_PERMISSION: return "Insufficient Permissions";
    case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
    case NVML_ERROR_TIMEOUT: return "Timeout";
    default: return "Unknown Error";
    }
}

static nvmlReturn_t system_text(const char *function, const char *name, char *text, unsigned int length) {
    nvmlReturn_t begun = begin(function);
    return begun != NVML_SUCCESS ? begun : give_text(look_up_system(name), text, length);
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    return system_text(__func__, "driver_version", version, length);
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    return system_text(__func__, "nvml_version", version, length);
}

nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length) {
    char key[NAME_BYTES_MAX];
    snprintf(key, sizeof key, "process_name.%u", pid);
    return system_text(__func__, key, name, length);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    nvmlReturn_t begun = begin(__func__);
    if (begun != NVML_SUCCESS)
        return begun;
    GIVE(version, look_up_system("cuda_version"));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    return nvmlSystemGetCudaDriverVersion_v2(version);
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    nvmlReturn_t begun = begin(__func__);
    if (begun == NVML_SUCCESS)
        *count = gpu_count();
    return begun;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    nvmlReturn_t begun = begin(__func__);
    if (begun != NVML_SUCCESS)
        return begun;
    if (index >= gpu_count())
        return NVML_ERROR_INVALID_ARGUMENT;
    *device = device_at(index);
    struct answer refused = look_up(*device, "handle");
    return refused.status == NVML_ERROR_NOT_SUPPORTED ? NVML_SUCCESS : refused.status;
}

static nvmlReturn_t handle_by(const char *name, const char *wanted, nvmlDevice_t *device) {
    for (unsigned int index = 0; index < gpu_count(); index++) {
        struct answer answer = look_up(device_at(index), name);
        if (answer.status == NVML_SUCCESS && strcmp(answer.text, wanted) == 0) {
            *device = device_at(index);
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    nvmlReturn_t begun = begin(__func__);
    return begun != NVML_SUCCESS ? begun : handle_by("uuid", uuid, device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *pci, nvmlDevice_t *device) {
    nvmlReturn_t begun = begin(__func__);
    return begun != NVML_SUCCESS ? begun : handle_by("pci", pci, device);
}

#define TEXT(function, name)                                                           \
    nvmlReturn_t function(nvmlDevice_t device, char *text, unsigned int length) {      \
        BEGIN(device);                                                                 \
        return give_text(look_up(device, name), text, length);                         \
    }

TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetUUID, "uuid")
TEXT(nvmlDeviceGetSerial, "serial")
TEXT(nvmlDeviceGetBoardPartNumber, "board_part")
TEXT(nvmlDeviceGetVbiosVersion, "vbios")

#define NUMBER(function, type, name)                        \
    nvmlReturn_t function(nvmlDevice_t device, type *value) { \
        BEGIN(device);                                      \
        GIVE(value, look_up(device, name));                 \
        return NVML_SUCCESS;                                \
    }

NUMBER(nvmlDeviceGetMinorNumber, unsigned int, "minor")
NUMBER(nvmlDeviceGetBoardId, unsigned int, "board_id")
NUMBER(nvmlDeviceGetModuleId, unsigned int, "module_id")
NUMBER(nvmlDeviceGetArchitecture, nvmlDeviceArchitecture_t, "architecture")
NUMBER(nvmlDeviceGetNumaNodeId, unsigned int, "numa_node")
NUMBER(nvmlDeviceGetPersistenceMode, nvmlEnableState_t, "persistence_mode")
NUMBER(nvmlDeviceGetComputeMode, nvmlComputeMode_t, "compute_mode")
NUMBER(nvmlDeviceGetPowerUsage, unsigned int, "power")
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned int, "power_limit_enforced")
NUMBER(nvmlDeviceGetPowerManagementLimit, unsigned int, "power_limit")
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned int, "power_limit_default")
NUMBER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, "energy")
NUMBER(nvmlDeviceGetPerformanceState, nvmlPstates_t, "performance_state")
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, "clock_reasons")
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, "clock_reasons")
NUMBER(nvmlDeviceGetSupportedClocksEventReasons, unsigned long long, "clock_reasons_supported")
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned int, "pcie_generation")
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, "pcie_width")
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, "pcie_generation_max")
NUMBER(nvmlDeviceGetGpuMaxPcieLinkGeneration, unsigned int, "pcie_generation_max_gpu")
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, "pcie_width_max")
NUMBER(nvmlDeviceGetPcieReplayCounter, unsigned int, "pcie_replays")
NUMBER(nvmlDeviceGetMaxMigDeviceCount, unsigned int, "mig_devices_max")

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index) {
    BEGIN(device);
    *index = device->index;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    BEGIN(device);
    struct answer address = look_up(device, "pci");
    if (address.status != NVML_SUCCESS)
        return address.status;
    memset(pci, 0, sizeof *pci);
    snprintf(pci->busId, sizeof pci->busId, "%.31s", address.text);
    if (sscanf(address.text, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device) != 3)
        return NVML_ERROR_UNKNOWN;
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus & 0xff,
             pci->device & 0x1f);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    BEGIN(device);
    GIVE(major, look_up(device, "compute_major"));
    GIVE(minor, look_up(device, "compute_minor"));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
    BEGIN(device);
    GIVE(&rates->gpu, look_up(device, "utilization"));
    GIVE(&rates->memory, look_up(device, "utilization_memory"));
    return NVML_SUCCESS;
}

static nvmlReturn_t coder(nvmlDevice_t device, const char *name, unsigned int *percent, unsigned int *period) {
    GIVE(percent, look_up(device, name));
    *period = 167000;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *period) {
    BEGIN(device);
    return coder(device, "utilization_encoder", percent, period);
}

nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned int *percent, unsigned int *period) {
    BEGIN(device);
    return coder(device, "utilization_decoder", percent, period);
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    BEGIN(device);
    struct answer older = look_up(device, "memory_v2");
    if (older.status != NVML_SUCCESS && older.status != NVML_ERROR_NOT_SUPPORTED)
        return older.status;
    if (memory->version != nvmlMemory_v2)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    GIVE(&memory->total, look_up(device, "memory_total"));
    GIVE(&memory->reserved, look_up(device, "memory_reserved"));
    GIVE(&memory->used, look_up(device, "memory_used"));
    memory->free = memory->total - memory->reserved - memory->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    unsigned long long reserved = 0;
    BEGIN(device);
    GIVE(&memory->total, look_up(device, "memory_total"));
    GIVE(&reserved, look_up(device, "memory_reserved"));
    GIVE(&memory->used, look_up(device, "memory_used"));
    memory->used += reserved;
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *celsius) {
    BEGIN(device);
    if (sensor != NVML_TEMPERATURE_GPU)
        return NVML_ERROR_INVALID_ARGUMENT;
    GIVE(celsius, look_up(device, "temperature"));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature) {
    BEGIN(device);
    if (temperature->version != nvmlTemperature_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    GIVE(&temperature->temperature, look_up(device, "temperature"));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t device, nvmlMarginTemperature_t *margin) {
    BEGIN(device);
    if (margin->version != nvmlMarginTemperature_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    GIVE(&margin->marginTemperature, look_up(device, "temperature_margin"));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, nvmlTemperatureThresholds_t kind,
                                               unsigned int *celsius) {
    BEGIN(device);
    GIVE(celsius, look_up_numbered(device, "temperature_threshold", kind));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *low, unsigned int *high) {
    BEGIN(device);
    GIVE(low, look_up(device, "power_limit_min"));
    GIVE(high, look_up(device, "power_limit_max"));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *megahertz) {
    BEGIN(device);
    GIVE(megahertz, look_up_numbered(device, "clock", type));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *megahertz) {
    BEGIN(device);
    GIVE(megahertz, look_up_numbered(device, "clock_max", type));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t device, nvmlPerfPolicyType_t policy, nvmlViolationTime_t *time) {
    BEGIN(device);
    GIVE(&time->violationTime, look_up_numbered(device, "violation", policy));
    time->referenceTime = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter, unsigned int *rate) {
    BEGIN(device);
    GIVE(rate, look_up_numbered(device, "pcie_throughput", counter));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    BEGIN(device);
    GIVE(current, look_up(device, "mig"));
    GIVE(pending, look_up(device, "mig_pending"));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t device, nvmlDevice_t other, nvmlGpuTopologyLevel_t *level) {
    BEGIN(device);
    GIVE(level, look_up_numbered(device, "topology", other->index));
    return NVML_SUCCESS;
}

static nvmlReturn_t processes(nvmlDevice_t device, const char *name, unsigned int *count, nvmlProcessInfo_t *list) {
    struct answer answer = look_up(device, name);
    unsigned int there = 0, room = *count;
    if (answer.status != NVML_SUCCESS && answer.status != NVML_ERROR_NOT_SUPPORTED)
        return answer.status;
    while (nth_value(device, name, there, &answer)) {
        if (there < room) {
            memset(&list[there], 0xff, sizeof *list);
            sscanf(answer.text, "%u %llu", &list[there].pid, &list[there].usedGpuMemory);
        }
        there++;
    }
    *count = there;
    return there > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

#define PROCESSES(function, name)                                                                 \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *list) {    \
        BEGIN(device);                                                                            \
        return processes(device, name, count, list);                                              \
    }

PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "process")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "process_graphics")
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, "process_mps")
