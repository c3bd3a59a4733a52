/* Lets one call that writes below a folder fail, by its number: preloaded into a process (tests/faultydisk.py).

FAULTY_FOLDER names the folder, FAULTY_CALL the number of the call (from 1; 0: none, they are counted), FAULTY_ERROR the
errno, 0 to kill the process, which leaves half of what it wrote. FAULTY_COUNT is a file that gets the number of calls at
the process's end. A process that forks sets them anew by faulty_disk(). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096];
static long failing, error_number, calls;
static const char *count_file;

void faulty_disk(const char *below, long call, long number) {
    snprintf(folder, sizeof folder, "%s", below);
    failing = call;
    error_number = number;
    calls = 0;
}

long faulty_disk_calls(void) { return calls; }

__attribute__((constructor)) static void begin(void) {
    const char *below = getenv("FAULTY_FOLDER");
    if (below)
        faulty_disk(below, atol(getenv("FAULTY_CALL")), atol(getenv("FAULTY_ERROR")));
    count_file = getenv("FAULTY_COUNT");
}

__attribute__((destructor)) static void end(void) {
    FILE *file;
    if (count_file && calls && (file = fopen(count_file, "w"))) {
        fprintf(file, "%ld", calls);
        fclose(file);
    }
}

static int is_below(const char *path) { return *folder && strncmp(path, folder, strlen(folder)) == 0; }

static int is_open_below(int fd) {
    char link[64], path[4096];
    ssize_t length;
    if (!*folder)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return is_below(path);
}

static int path_is_below(const char *path) {
    char full[4096], here[2048];
    if (*path == '/')
        return is_below(path);
    if (!*folder || !getcwd(here, sizeof here))
        return 0;
    snprintf(full, sizeof full, "%s/%s", here, path);
    return is_below(full);
}

static int fails(void) {
    if (__sync_add_and_fetch(&calls, 1) != failing)
        return 0;
    errno = (int)error_number;
    return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define DIE() kill(getpid(), SIGKILL)

ssize_t write(int fd, const void *data, size_t size) {
    if (is_open_below(fd) && fails()) {
        if (error_number)
            return -1;
        NEXT(write)(fd, data, size / 2);
        DIE();
    }
    return NEXT(write)(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (is_open_below(fd) && fails()) {
        if (error_number)
            return -1;
        DIE();
    }
    return NEXT(writev)(fd, parts, count);
}

#define POSITIONED(name, offset_type)                                            \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) {    \
        if (is_open_below(fd) && fails()) {                                      \
            if (error_number)                                                    \
                return -1;                                                       \
            NEXT(name)(fd, data, size / 2, offset);                              \
            DIE();                                                               \
        }                                                                        \
        return NEXT(name)(fd, data, size, offset);                               \
    }
POSITIONED(pwrite, off_t)
POSITIONED(pwrite64, off64_t)

#define ON_OPEN_FILE(name)                    \
    int name(int fd) {                        \
        if (is_open_below(fd) && fails()) {   \
            if (error_number)                 \
                return -1;                    \
            DIE();                            \
        }                                     \
        return NEXT(name)(fd);                \
    }
ON_OPEN_FILE(fsync)
ON_OPEN_FILE(fdatasync)

int rename(const char *old, const char *new) {
    if (path_is_below(new) && fails()) {
        if (error_number)
            return -1;
        DIE();
    }
    return NEXT(rename)(old, new);
}

int renameat(int old_folder, const char *old, int new_folder, const char *new) {
    if (path_is_below(new) && fails()) {
        if (error_number)
            return -1;
        DIE();
    }
    return NEXT(renameat)(old_folder, old, new_folder, new);
}
