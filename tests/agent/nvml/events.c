/* Event sets, and GPM: two samples of one GPU and what happened between them. */
#include "scenario.h"

#include <stdlib.h>
#include <unistd.h>

struct nvmlEventSet_st {
    unsigned long long types[GPUS_MAX];
    unsigned long long seen;
    int is_spoilt; /* an error leaves a set in an undefined state: here it never says anything again */
};

struct nvmlGpmSample_st {
    unsigned int gpu;
    unsigned long long number;
};

static unsigned long long samples_taken;

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    nvmlReturn_t begun = begin(__func__);
    struct event event;
    if (begun != NVML_SUCCESS)
        return begun;
    *set = calloc(1, sizeof **set);
    if (*set == NULL)
        return NVML_ERROR_MEMORY;
    while (next_event((*set)->seen, &event)) /* what happened before is not recorded */
        (*set)->seen = event.sequence;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
    free(set);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types) {
    BEGIN(device);
    GIVE(types, look_up(device, "event_types"));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    unsigned long long supported = 0;
    BEGIN(device);
    GIVE(&supported, look_up(device, "event_types"));
    if (types & ~supported)
        return NVML_ERROR_NOT_SUPPORTED;
    set->types[device->index] |= types;
    return NVML_SUCCESS;
}

static int take_event(nvmlEventSet_t set, nvmlEventData_t *data) {
    struct event event;
    while (next_event(set->seen, &event)) {
        set->seen = event.sequence;
        if (event.gpu < GPUS_MAX && (set->types[event.gpu] & event.type)) {
            data->device = device_at(event.gpu);
            data->eventType = event.type;
            data->eventData = event.data;
            data->gpuInstanceId = data->computeInstanceId = 0xffffffffU;
            return 1;
        }
    }
    return 0;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_milliseconds) {
    nvmlReturn_t begun = begin(__func__);
    unsigned long long now = now_milliseconds(), end = now + timeout_milliseconds;
    if (begun != NVML_SUCCESS)
        return begun;
    struct answer failing = look_up_system("event_wait");
    if (failing.status != NVML_SUCCESS && failing.status != NVML_ERROR_NOT_SUPPORTED) {
        set->is_spoilt = 1;
        return failing.status;
    }
    if (set->is_spoilt)
        return NVML_ERROR_UNKNOWN;
    if (take_event(set, data))
        return NVML_SUCCESS;
    if (timeout_milliseconds == 0)
        return NVML_ERROR_TIMEOUT;
    int watch = watch_scenario(), is_there;
    while (!(is_there = take_event(set, data)) && (now = now_milliseconds()) < end)
        wait_for_change(watch, (unsigned int)(end - now));
    close(watch);
    return is_there ? NVML_SUCCESS : NVML_ERROR_TIMEOUT;
}

nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *support) {
    BEGIN(device);
    if (support->version != NVML_GPM_SUPPORT_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    GIVE(&support->isSupportedDevice, look_up(device, "gpm"));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *sample) {
    *sample = calloc(1, sizeof **sample);
    return *sample == NULL ? NVML_ERROR_MEMORY : NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t sample) {
    free(sample);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t sample) {
    unsigned int is_there = 0;
    BEGIN(device);
    GIVE(&is_there, look_up(device, "gpm"));
    if (!is_there)
        return NVML_ERROR_NOT_SUPPORTED;
    sample->gpu = device->index;
    sample->number = ++samples_taken;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *request) {
    nvmlGpmSample_t before = request->sample1, after = request->sample2;
    nvmlReturn_t begun = begin(__func__);
    if (begun != NVML_SUCCESS)
        return begun;
    if (request->version != NVML_GPM_METRICS_GET_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (before->number == 0 || after->number <= before->number || before->gpu != after->gpu)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned int each = 0; each < request->numMetrics; each++) {
        nvmlGpmMetric_t *metric = &request->metrics[each];
        struct answer answer = look_up_numbered(device_at(after->gpu), "gpm_metric", metric->metricId);
        metric->nvmlReturn = answer.status;
        metric->value = answer.status == NVML_SUCCESS ? strtod(answer.text, NULL) : 0.0;
    }
    return NVML_SUCCESS;
}
