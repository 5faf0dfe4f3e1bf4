/* Memory errors, remapped rows, links, fabric and field values. */
#include "scenario.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, nvmlEnableState_t *current, nvmlEnableState_t *pending) {
    BEGIN(device);
    GIVE(current, look_up(device, "ecc"));
    GIVE(pending, look_up(device, "ecc_pending"));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t kind, nvmlEccCounterType_t counter,
                                         unsigned long long *count) {
    BEGIN(device);
    GIVE(count, look_up_numbered(device, "field", NVML_FI_DEV_ECC_SBE_VOL_TOTAL + kind + 2 * counter));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, nvmlMemoryErrorType_t kind,
                                             nvmlEccCounterType_t counter, nvmlMemoryLocation_t place,
                                             unsigned long long *count) {
    char name[NAME_BYTES_MAX];
    BEGIN(device);
    snprintf(name, sizeof name, "ecc_errors.%d.%d", (int)kind, (int)counter);
    GIVE(count, look_up_numbered(device, name, place));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSramEccErrorStatus(nvmlDevice_t device, nvmlEccSramErrorStatus_t *status) {
    BEGIN(device);
    if (status->version != nvmlEccSramErrorStatus_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    GIVE(&status->aggregateUncParity, look_up(device, "sram_parity_aggregate"));
    GIVE(&status->aggregateUncSecDed, look_up(device, "sram_secded_aggregate"));
    GIVE(&status->aggregateCor, look_up(device, "sram_corrected_aggregate"));
    GIVE(&status->volatileUncParity, look_up(device, "sram_parity_volatile"));
    GIVE(&status->volatileUncSecDed, look_up(device, "sram_secded_volatile"));
    GIVE(&status->volatileCor, look_up(device, "sram_corrected_volatile"));
    GIVE(&status->aggregateUncBucketL2, look_up(device, "sram_bucket.l2"));
    GIVE(&status->aggregateUncBucketSm, look_up(device, "sram_bucket.sm"));
    GIVE(&status->aggregateUncBucketPcie, look_up(device, "sram_bucket.pcie"));
    GIVE(&status->aggregateUncBucketMcu, look_up(device, "sram_bucket.mcu"));
    GIVE(&status->aggregateUncBucketOther, look_up(device, "sram_bucket.other"));
    GIVE(&status->bThresholdExceeded, look_up(device, "sram_threshold_exceeded"));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected,
                                       unsigned int *is_pending, unsigned int *has_failed) {
    BEGIN(device);
    GIVE(corrected, look_up_numbered(device, "field", NVML_FI_DEV_REMAPPED_COR));
    GIVE(uncorrected, look_up_numbered(device, "field", NVML_FI_DEV_REMAPPED_UNC));
    GIVE(is_pending, look_up_numbered(device, "field", NVML_FI_DEV_REMAPPED_PENDING));
    GIVE(has_failed, look_up_numbered(device, "field", NVML_FI_DEV_REMAPPED_FAILURE));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRowRemapperHistogram(nvmlDevice_t device, nvmlRowRemapperHistogramValues_t *banks) {
    BEGIN(device);
    GIVE(&banks->max, look_up(device, "remap_banks.max"));
    GIVE(&banks->high, look_up(device, "remap_banks.high"));
    GIVE(&banks->partial, look_up(device, "remap_banks.partial"));
    GIVE(&banks->low, look_up(device, "remap_banks.low"));
    GIVE(&banks->none, look_up(device, "remap_banks.none"));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t device, nvmlPageRetirementCause_t cause, unsigned int *count,
                                       unsigned long long *addresses) {
    unsigned int room = *count, there = 0;
    BEGIN(device);
    GIVE(&there, look_up_numbered(device, "retired_pages", cause));
    *count = there;
    if (there > room)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int page = 0; page < there; page++)
        addresses[page] = 0x10000ULL * (page + 1);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t device, nvmlEnableState_t *is_pending) {
    BEGIN(device);
    GIVE(is_pending, look_up_numbered(device, "field", NVML_FI_DEV_RETIRED_PENDING));
    return NVML_SUCCESS;
}

static nvmlReturn_t begin_link(const char *function, nvmlDevice_t device, unsigned int link) {
    nvmlReturn_t begun = begin_device(function, device);
    if (begun != NVML_SUCCESS)
        return begun;
    struct answer links = look_up_numbered(device, "field", NVML_FI_DEV_NVLINK_LINK_COUNT);
    return links.status == NVML_SUCCESS && link >= links.number ? NVML_ERROR_INVALID_ARGUMENT : NVML_SUCCESS;
}

#define BEGIN_LINK(device, link)                                       \
    do {                                                               \
        nvmlReturn_t begun = begin_link(__func__, device, link);       \
        if (begun != NVML_SUCCESS)                                     \
            return begun;                                              \
    } while (0)

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link, nvmlEnableState_t *is_active) {
    BEGIN_LINK(device, link);
    GIVE(is_active, look_up_numbered(device, "nvlink_state", link));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkVersion(nvmlDevice_t device, unsigned int link, unsigned int *version) {
    BEGIN_LINK(device, link);
    GIVE(version, look_up_numbered(device, "nvlink_version", link));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t device, unsigned int link, nvmlNvLinkErrorCounter_t counter,
                                             unsigned long long *count) {
    char name[NAME_BYTES_MAX];
    BEGIN_LINK(device, link);
    snprintf(name, sizeof name, "nvlink_errors.%d", (int)counter);
    GIVE(count, look_up_numbered(device, name, link));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *pci) {
    BEGIN_LINK(device, link);
    memset(pci, 0, sizeof *pci);
    return give_text(look_up_numbered(device, "nvlink_remote", link), pci->busId, sizeof pci->busId);
}

/* A field's value: digits are unsigned long long, `u:7` unsigned int, `-5` or `i:5` int, `48.5` double. */
static void set_field(nvmlFieldValue_t *field, const char *text) {
    if (strncmp(text, "u:", 2) == 0) {
        field->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
        field->value.uiVal = (unsigned int)strtoul(text + 2, NULL, 0);
    } else if (text[0] == '-' || strncmp(text, "i:", 2) == 0) {
        field->valueType = NVML_VALUE_TYPE_SIGNED_INT;
        field->value.siVal = (int)strtol(text[0] == '-' ? text : text + 2, NULL, 0);
    } else if (strchr(text, '.') != NULL) {
        field->valueType = NVML_VALUE_TYPE_DOUBLE;
        field->value.dVal = strtod(text, NULL);
    } else {
        field->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
        field->value.ullVal = strtoull(text, NULL, 0);
    }
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    char name[NAME_BYTES_MAX];
    BEGIN(device);
    if (values == NULL || count < 1)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int each = 0; each < count; each++) {
        nvmlFieldValue_t *field = &values[each];
        snprintf(name, sizeof name, "field.%u", field->fieldId);
        struct answer answer = look_up_numbered(device, name, field->scopeId);
        memset(&field->value, 0xff, sizeof field->value);
        field->timestamp = 0;
        field->latencyUsec = 0;
        field->nvmlReturn = answer.status;
        if (answer.status == NVML_SUCCESS)
            set_field(field, answer.text);
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, nvmlGpuFabricInfoV_t *fabric) {
    struct answer healthy;
    BEGIN(device);
    if (fabric->version != nvmlGpuFabricInfo_v2 && fabric->version != nvmlGpuFabricInfo_v3)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (fabric->version == nvmlGpuFabricInfo_v3 && (healthy = look_up(device, "fabric_v3")).status != NVML_SUCCESS)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    GIVE(&fabric->state, look_up(device, "fabric_state"));
    GIVE(&fabric->status, look_up(device, "fabric_status"));
    GIVE(&fabric->cliqueId, look_up(device, "fabric_clique"));
    GIVE(&fabric->healthMask, look_up(device, "fabric_health_mask"));
    memset(fabric->clusterUuid, 0xab, sizeof fabric->clusterUuid);
    if (fabric->version == nvmlGpuFabricInfo_v3)
        GIVE(&fabric->healthSummary, look_up(device, "fabric_health_summary"));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t device, nvmlGpuFabricInfo_t *fabric) {
    BEGIN(device);
    GIVE(&fabric->state, look_up(device, "fabric_state"));
    GIVE(&fabric->status, look_up(device, "fabric_status"));
    GIVE(&fabric->cliqueId, look_up(device, "fabric_clique"));
    return NVML_SUCCESS;
}
