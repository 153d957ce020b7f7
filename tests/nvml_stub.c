/* A libnvidia-ml.so.1 without a driver: what nvidia-ml-py asks for, told from a text file.
 *
 *     cc -shared -fPIC -o libnvidia-ml.so.1 nvml_stub.c
 *
 * NVML_STUB names the file, which is read again at each call. One line is one GPU, in order:
 *
 *     ok [name=WORD] [total=BYTES] [used=BYTES] [util=PERCENT] [temp=CELSIUS] [power=MILLIWATTS]
 *        [persist=0 or 1]
 *        [proc=PID:BYTES ...] [gproc=PID:BYTES ...]     compute and graphics processes
 *     lost           asked for its handle, the driver says GPU_IS_LOST
 *     error=CODE     ... says any NVML error             late=CODE      ... only for its memory
 *     hang           ... never comes back
 *     exit=CODE      ... ends the asking process         signal=NUMBER  ... by a signal
 *
 * util, temp, power and persist are NOT_SUPPORTED where they are not given; a process's memory may be "-",
 * not available. Lines that are no GPU: "init=CODE", which nvmlInit returns; "say=TEXT", which it
 * prints; "# ...". Without the file, nvmlInit says DRIVER_NOT_LOADED. Replace the file as a whole.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS, NOT_SUPPORTED = 3, TOO_SMALL = 7, NOT_LOADED = 9, LOST = 15 };
enum { LINE = 4096 };

typedef unsigned long long u64;
typedef struct { unsigned version; u64 total, reserved, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Rates;
typedef struct { unsigned pid; u64 memory; unsigned instance, compute_instance; } Process;

/* The word "key=..." of a line from where it starts, behind the "="; NULL if there is none. */
static const char *word(const char *line, const char *key) {
    size_t length = strlen(key);
    for (const char *at = line; (at = strstr(at, key)); at += length)
        if ((at == line || at[-1] == ' ') && at[length] == '=') return at + length + 1;
    return NULL;
}

static u64 number(const char *line, const char *key, u64 otherwise) {
    const char *at = word(line, key);
    return at ? strtoull(at, NULL, 10) : otherwise;
}

static FILE *opened(void) {
    const char *path = getenv("NVML_STUB");
    return path ? fopen(path, "r") : NULL;
}

/* The line of a GPU, "" if there is none; how many GPUs there are. */
static int read_line(int index, char *found) {
    char line[LINE];
    int count = 0;
    *found = 0;
    FILE *file = opened();
    while (file && fgets(line, LINE, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!*line || *line == '#' || !strncmp(line, "init=", 5) || !strncmp(line, "say=", 4))
            continue;
        if (count++ == index) strcpy(found, line);
    }
    if (file) fclose(file);
    return count;
}

int nvmlInitWithFlags(unsigned flags) {
    char line[LINE];
    int code = SUCCESS;
    FILE *file = opened();
    (void)flags;
    if (!file) return NOT_LOADED;
    while (fgets(line, LINE, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "init=", 5)) code = atoi(line + 5);
        if (!strncmp(line, "say=", 4)) fputs(line + 4, stdout), fflush(stdout);
    }
    fclose(file);
    return code;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : "Stub's error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    char line[LINE];
    *count = (unsigned)read_line(-1, line);
    return SUCCESS;
}

/* A handle is the index and 1. */
static int at(void *device, char *line) { return read_line((int)(size_t)device - 1, line); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    char line[LINE];
    read_line((int)index, line);
    if (!strncmp(line, "hang", 4)) for (;;) pause();
    if (word(line, "signal")) raise((int)number(line, "signal", 0));
    if (word(line, "exit")) _exit((int)number(line, "exit", 0));
    if (!strncmp(line, "lost", 4)) return LOST;
    *device = (void *)(size_t)(index + 1);
    return (int)number(line, "error", SUCCESS);
}

int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    char line[LINE];
    at(device, line);
    snprintf(name, length, "%s", word(line, "name") ? word(line, "name") : "Stub");
    name[strcspn(name, " ")] = 0;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, Memory *memory) {
    char line[LINE];
    at(device, line);
    memory->total = number(line, "total", 80ull << 30);
    memory->used = number(line, "used", 0);
    memory->free = memory->total - memory->used;
    memory->reserved = 0;
    return (int)number(line, "late", SUCCESS);
}

static int quantity(void *device, const char *key, unsigned *value) {
    char line[LINE];
    at(device, line);
    *value = (unsigned)number(line, key, 0);
    return word(line, key) ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetUtilizationRates(void *device, Rates *rates) {
    rates->memory = 0;
    return quantity(device, "util", &rates->gpu);
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *degrees) {
    (void)sensor;
    return quantity(device, "temp", degrees);
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    return quantity(device, "power", milliwatts);
}

int nvmlDeviceGetPersistenceMode(void *device, unsigned *on) {
    return quantity(device, "persist", on);
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    snprintf(version, length, "999.1");
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = 13020;
    return SUCCESS;
}

static int processes(void *device, const char *key, unsigned *room, Process *found) {
    char line[LINE];
    unsigned count = 0;
    at(device, line);
    for (const char *one = line; (one = word(one, key)); count++) {
        char *end;
        unsigned pid = (unsigned)strtoul(one, &end, 10);
        if (found && count < *room) {
            found[count] = (Process){pid, end[1] == '-' ? ~0ull : strtoull(end + 1, NULL, 10), 0, 0};
        }
    }
    int fits = count == 0 || (found && count <= *room);
    *room = count;
    return fits ? SUCCESS : TOO_SMALL;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *room, Process *found) {
    return processes(device, "proc", room, found);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *room, Process *found) {
    return processes(device, "gproc", room, found);
}
