/* What every file of the stand-in shares: the scenario's values, and how a function begins. */
#ifndef INSTEP_NVML_SCENARIO_H
#define INSTEP_NVML_SCENARIO_H

#include <nvml.h>

#define GPUS_MAX 16
#define NAME_BYTES_MAX 96
#define VALUE_BYTES_MAX 160

struct nvmlDevice_st {
    unsigned int index;
};

/* One value of the scenario: `status` says whether the rest means anything. */
struct answer {
    nvmlReturn_t status;
    char text[VALUE_BYTES_MAX];
    unsigned long long number;
};

struct event {
    unsigned long long sequence;
    unsigned int gpu;
    unsigned long long data;
    unsigned long long type;
};

/* Begins a call that belongs to no GPU, or to `device`: waits while the scenario says that `function` hangs; then gives
 * UNINITIALIZED before nvmlInit, GPU_IS_LOST for a lost GPU. */
nvmlReturn_t begin(const char *function);
nvmlReturn_t begin_device(const char *function, nvmlDevice_t device);

/* The last line of the scenario whose key is `name`, `<gpu>.name` or `*.name`; NOT_SUPPORTED when there is none. */
struct answer look_up_system(const char *name);
struct answer look_up(nvmlDevice_t device, const char *name);
/* `name.number`, then `name`: a line for one link stands before the line for all. */
struct answer look_up_numbered(nvmlDevice_t device, const char *name, unsigned int number);

unsigned int gpu_count(void);
nvmlDevice_t device_at(unsigned int index);

/* Lines `<key> <value>` that are there more than once: gives the value of the n-th, or 0. */
int nth_value(nvmlDevice_t device, const char *name, unsigned int n, struct answer *found);
/* The event with the lowest sequence number above `after`; 0 when there is none. */
int next_event(unsigned long long after, struct event *found);

void initialise(void);
nvmlReturn_t shut_down(void);

/* Waiting costs nothing, as with the real driver: begin to watch, look, then wait for the file to be replaced. */
int watch_scenario(void);
void wait_for_change(int watch, unsigned int milliseconds);
unsigned long long now_milliseconds(void);
nvmlReturn_t give_text(struct answer answer, char *text, unsigned int length);

#define BEGIN(device)                                                  \
    do {                                                               \
        nvmlReturn_t begun = begin_device(__func__, device);           \
        if (begun != NVML_SUCCESS)                                     \
            return begun;                                              \
    } while (0)

/* Gives one value of the scenario to `*target`, or returns its error. */
#define GIVE(target, answer_of_scenario)                               \
    do {                                                               \
        struct answer given = (answer_of_scenario);                    \
        if (given.status != NVML_SUCCESS)                              \
            return given.status;                                       \
        if ((target) == NULL)                                          \
            return NVML_ERROR_INVALID_ARGUMENT;                        \
        *(target) = given.number;                                      \
    } while (0)

#endif
