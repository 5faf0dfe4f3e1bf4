/* Reads the scenario file (INSTEP_NVML_SCENARIO) again whenever it was replaced, and answers from its lines. */
#include "scenario.h"

#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LINES_MAX 4096
#define HANG_POLL_MILLISECONDS 1000

struct line {
    unsigned int hash; /* of the key: lines are looked through for every answer, and must not cost more than the agent */
    char key[NAME_BYTES_MAX];
    char value[VALUE_BYTES_MAX];
};

static struct line lines[LINES_MAX];
static unsigned int line_count;
static struct stat read_status;
static unsigned int users;
static struct nvmlDevice_st devices[GPUS_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static unsigned int hash_of(const char *key) {
    unsigned int hash = 5381;
    while (*key)
        hash = hash * 33 + (unsigned char)*key++;
    return hash;
}

static void read_line(const char *text) {
    struct line line;
    memset(&line, 0, sizeof line);
    if (text[0] == '#' || line_count == LINES_MAX)
        return;
    if (sscanf(text, "%95s %159[^\n]", line.key, line.value) != 2)
        return;
    line.hash = hash_of(line.key);
    lines[line_count++] = line;
}

/* The writer puts a whole new file in the old one's place, so that an open file never changes under its reader. */
static void refresh(void) {
    const char *path = getenv("INSTEP_NVML_SCENARIO");
    struct stat status;
    char text[NAME_BYTES_MAX + VALUE_BYTES_MAX + 4];
    if (path == NULL || stat(path, &status) != 0)
        return;
    if (status.st_ino == read_status.st_ino && status.st_mtim.tv_sec == read_status.st_mtim.tv_sec &&
        status.st_mtim.tv_nsec == read_status.st_mtim.tv_nsec && status.st_size == read_status.st_size)
        return;
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return;
    fstat(fileno(file), &read_status);
    line_count = 0;
    while (fgets(text, sizeof text, file) != NULL)
        read_line(text);
    fclose(file);
}

static struct answer parse(const char *value) {
    struct answer answer;
    memset(&answer, 0, sizeof answer);
    if (value[0] == '!') {
        answer.status = (nvmlReturn_t)atoi(value + 1);
        return answer;
    }
    answer.status = NVML_SUCCESS;
    snprintf(answer.text, sizeof answer.text, "%s", value);
    if (strncmp(value, "u:", 2) == 0 || strncmp(value, "i:", 2) == 0) /* a field value's type */
        value += 2;
    answer.number = value[0] == '-' ? (unsigned long long)strtoll(value, NULL, 0) : strtoull(value, NULL, 0);
    return answer;
}

static const char *find(const char *key, const char *other_key, unsigned int *position) {
    unsigned int hash = hash_of(key), other_hash = other_key == NULL ? hash : hash_of(other_key);
    while (*position > 0) {
        const struct line *line = &lines[--*position];
        if (line->hash == hash && strcmp(line->key, key) == 0)
            return line->value;
        if (line->hash == other_hash && other_key != NULL && strcmp(line->key, other_key) == 0)
            return line->value;
    }
    return NULL;
}

static struct answer answer_for(const char *key, const char *other_key) {
    struct answer answer;
    pthread_mutex_lock(&lock);
    unsigned int position = line_count;
    const char *value = find(key, other_key, &position);
    answer = parse(value == NULL ? "!3" : value);
    pthread_mutex_unlock(&lock);
    return answer;
}

static void keys_of(nvmlDevice_t device, const char *name, char *own, char *shared) {
    snprintf(own, NAME_BYTES_MAX, "%u.%s", device->index, name);
    snprintf(shared, NAME_BYTES_MAX, "*.%s", name);
}

struct answer look_up_system(const char *name) {
    return answer_for(name, NULL);
}

struct answer look_up(nvmlDevice_t device, const char *name) {
    char own[NAME_BYTES_MAX], shared[NAME_BYTES_MAX];
    keys_of(device, name, own, shared);
    return answer_for(own, shared);
}

struct answer look_up_numbered(nvmlDevice_t device, const char *name, unsigned int number) {
    char numbered[NAME_BYTES_MAX];
    snprintf(numbered, sizeof numbered, "%s.%u", name, number);
    struct answer answer = look_up(device, numbered);
    return answer.status == NVML_ERROR_NOT_SUPPORTED ? look_up(device, name) : answer;
}

int nth_value(nvmlDevice_t device, const char *name, unsigned int n, struct answer *found) {
    char own[NAME_BYTES_MAX], shared[NAME_BYTES_MAX];
    const char *value = NULL;
    keys_of(device, name, own, shared);
    pthread_mutex_lock(&lock);
    unsigned int position = line_count;
    do
        value = find(own, shared, &position);
    while (value != NULL && n-- > 0);
    if (value != NULL)
        *found = parse(value);
    pthread_mutex_unlock(&lock);
    return value != NULL;
}

int next_event(unsigned long long after, struct event *found) {
    int is_found = 0;
    pthread_mutex_lock(&lock);
    refresh();
    for (unsigned int position = line_count; position > 0;) {
        struct event event = {.type = nvmlEventTypeXidCriticalError};
        const char *value = find("event", NULL, &position);
        if (value == NULL)
            break;
        if (sscanf(value, "%llu %u %llu %lli", &event.sequence, &event.gpu, &event.data, (long long *)&event.type) < 3)
            continue;
        if (event.sequence > after && (!is_found || event.sequence < found->sequence)) {
            *found = event;
            is_found = 1;
        }
    }
    pthread_mutex_unlock(&lock);
    return is_found;
}

static int hangs(const char *function, nvmlDevice_t device) {
    struct answer answer;
    for (unsigned int n = 0; nth_value(device, "hang", n, &answer); n++)
        if (strcmp(answer.text, function) == 0)
            return 1;
    return 0;
}

int watch_scenario(void) {
    char folder[PATH_MAX];
    const char *path = getenv("INSTEP_NVML_SCENARIO");
    int watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (watch < 0 || path == NULL || strlen(path) >= sizeof folder)
        return watch;
    strcpy(folder, path);
    inotify_add_watch(watch, dirname(folder), IN_MOVED_TO);
    return watch;
}

void wait_for_change(int watch, unsigned int milliseconds) {
    char events[4096];
    struct pollfd wanted = {watch, POLLIN, 0};
    poll(&wanted, 1, (int)milliseconds);
    while (read(watch, events, sizeof events) > 0)
        ;
}

unsigned long long now_milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (unsigned long long)now.tv_sec * 1000 + (unsigned long long)now.tv_nsec / 1000000;
}

static void refresh_locked(void) {
    pthread_mutex_lock(&lock);
    refresh();
    pthread_mutex_unlock(&lock);
}

static void wait_while_hanging(const char *function, nvmlDevice_t device) {
    refresh_locked();
    if (!hangs(function, device))
        return;
    int watch = watch_scenario();
    for (refresh_locked(); hangs(function, device); refresh_locked())
        wait_for_change(watch, HANG_POLL_MILLISECONDS);
    close(watch);
}

nvmlReturn_t begin(const char *function) {
    struct nvmlDevice_st nobody = {GPUS_MAX};
    wait_while_hanging(function, &nobody);
    return users > 0 ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t begin_device(const char *function, nvmlDevice_t device) {
    if (device < devices || device >= devices + GPUS_MAX)
        return NVML_ERROR_INVALID_ARGUMENT;
    wait_while_hanging(function, device);
    if (users == 0)
        return NVML_ERROR_UNINITIALIZED;
    struct answer lost = look_up(device, "lost");
    return lost.status == NVML_SUCCESS && lost.number ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
}

unsigned int gpu_count(void) {
    struct answer answer = look_up_system("gpus");
    if (answer.status != NVML_SUCCESS)
        return 0;
    return answer.number > GPUS_MAX ? GPUS_MAX : (unsigned int)answer.number;
}

nvmlDevice_t device_at(unsigned int index) {
    devices[index].index = index;
    return &devices[index];
}

void initialise(void) {
    users++;
}

nvmlReturn_t shut_down(void) {
    if (users == 0)
        return NVML_ERROR_UNINITIALIZED;
    users--;
    return NVML_SUCCESS;
}

nvmlReturn_t give_text(struct answer answer, char *text, unsigned int length) {
    if (answer.status != NVML_SUCCESS)
        return answer.status;
    if (text == NULL)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(answer.text) + 1 > length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(text, answer.text);
    return NVML_SUCCESS;
}
