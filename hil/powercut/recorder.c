/* Preloaded into a process: writes down what it does to the files of one folder, and lets chosen calls fail.
 *
 * DRIVEWAY_POWERCUT_FOLDER is the folder (an absolute path, ending in a slash), DRIVEWAY_POWERCUT_LOG the file that
 * takes one record an operation: a letter, then as little-endian numbers the length of the path (2 bytes), an offset
 * (8), the length of the data (4), and then the path and the data.
 *
 *   C  a file was made                 W  bytes were written at an offset    T  a file was cut to a length
 *   S  fsync of a file or folder       D  fdatasync                          F  a sync that failed
 *   U  a name was removed              R  a name was changed (data: to what)
 *   L  a symbolic link was made (data: where it leads)
 *   N  a note: powercut_note wrote it down between two operations
 *
 * DRIVEWAY_POWERCUT_STOP=n kills the process after its nth operation.
 *
 * powercut_fail(kind, nth, error, times) lets the nth call of a kind from now on fail, and as many after it as `times`
 * says: 'W' a write, 'S' a sync of either sort, 'T' a truncation, 'O' an opening for writing. A write that fails has
 * written nothing; a sync that fails has synced nothing. powercut_calls(kind) counts the calls since the last
 * powercut_fail. What goes past these functions (mmap, writev) is not seen: the reader of the log compares its end with
 * the folder itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DESCRIPTORS 4096
#define PATH_BYTES 512

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int log_file = -1;
static const char *folder;
static long stop_after;
static char path_of[DESCRIPTORS][PATH_BYTES];

static struct { long calls, nth, times; int error; } faults[128];

#define REAL(name) ({ static __typeof__(&name) found; if (!found) found = dlsym(RTLD_NEXT, #name); found; })

__attribute__((constructor)) static void begin(void) {
    const char *log = getenv("DRIVEWAY_POWERCUT_LOG");
    const char *stop = getenv("DRIVEWAY_POWERCUT_STOP");
    stop_after = stop ? atol(stop) : 0;
    folder = getenv("DRIVEWAY_POWERCUT_FOLDER");
    if (folder && log)
        log_file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int watched_path(const char *path) {
    if (!folder || !path) return 0;
    size_t length = strlen(folder);
    return !strncmp(path, folder, length) || (!strncmp(path, folder, length - 1) && path[length - 1] == 0);
}

static int watched(int file) { return file >= 0 && file < DESCRIPTORS && path_of[file][0]; }

static void record(char what, const char *path, int64_t offset, const void *data, uint32_t bytes) {
    if (log_file < 0) return;
    uint16_t path_bytes = strlen(path);
    size_t total = 15 + path_bytes + (size_t)bytes;
    char *entry = malloc(total), *at = entry;
    *at++ = what;
    memcpy(at, &path_bytes, 2), at += 2;
    memcpy(at, &offset, 8), at += 8;
    memcpy(at, &bytes, 4), at += 4;
    memcpy(at, path, path_bytes), at += path_bytes;
    if (bytes) memcpy(at, data, bytes);
    if (syscall(SYS_write, log_file, entry, total) != (long)total) abort();
    free(entry);
    if (stop_after && what != 'N' && !--stop_after) raise(SIGKILL);
}

void powercut_fail(char kind, long nth, int error, long times) {
    pthread_mutex_lock(&lock);
    for (int each = 0; each < 128; each++) faults[each].calls = faults[each].times = 0;
    faults[(int)kind].nth = nth, faults[(int)kind].error = error, faults[(int)kind].times = times;
    pthread_mutex_unlock(&lock);
}

void powercut_note(const void *data, uint32_t bytes) {
    pthread_mutex_lock(&lock);
    record('N', "", 0, data, bytes);
    pthread_mutex_unlock(&lock);
}

long powercut_calls(char kind) { return faults[(int)kind].calls; }

/* Whether this call is to fail; errno says how. Called with the lock. */
static int fails(char kind) {
    long call = ++faults[(int)kind].calls, nth = faults[(int)kind].nth;
    if (!faults[(int)kind].times || call < nth || call >= nth + faults[(int)kind].times) return 0;
    errno = faults[(int)kind].error;
    return 1;
}

static int do_open(int at, const char *path, int flags, mode_t mode) {
    if (!watched_path(path)) return syscall(SYS_openat, at, path, flags, mode);
    pthread_mutex_lock(&lock);
    int writes = (flags & O_ACCMODE) != O_RDONLY, there = access(path, F_OK) == 0, file = -1;
    if (!(writes && fails('O'))) file = syscall(SYS_openat, at, path, flags, mode);
    if (file >= 0 && file < DESCRIPTORS) {
        snprintf(path_of[file], PATH_BYTES, "%s", path);
        if (!there && (flags & O_CREAT)) record('C', path, 0, 0, 0);
        if (there && (flags & O_TRUNC) && writes) record('T', path, 0, 0, 0);
    }
    pthread_mutex_unlock(&lock);
    return file;
}

#define MODE(flags) ({ mode_t mode = 0; if ((flags) & (O_CREAT | __O_TMPFILE)) { \
    va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest); } mode; })
int open(const char *path, int flags, ...) { return do_open(AT_FDCWD, path, flags, MODE(flags)); }
int open64(const char *path, int flags, ...) { return do_open(AT_FDCWD, path, flags, MODE(flags)); }
int openat(int at, const char *path, int flags, ...) { return do_open(at, path, flags, MODE(flags)); }
int openat64(int at, const char *path, int flags, ...) { return do_open(at, path, flags, MODE(flags)); }

int close(int file) {
    if (watched(file)) path_of[file][0] = 0;
    return REAL(close)(file);
}

ssize_t pwrite64(int file, const void *data, size_t bytes, off64_t offset) {
    if (!watched(file)) return REAL(pwrite64)(file, data, bytes, offset);
    pthread_mutex_lock(&lock);
    ssize_t written = fails('W') ? -1 : REAL(pwrite64)(file, data, bytes, offset);
    if (written > 0) record('W', path_of[file], offset, data, written);
    pthread_mutex_unlock(&lock);
    return written;
}
ssize_t pwrite(int file, const void *data, size_t bytes, off_t offset) { return pwrite64(file, data, bytes, offset); }

ssize_t write(int file, const void *data, size_t bytes) {
    if (!watched(file)) return REAL(write)(file, data, bytes);
    pthread_mutex_lock(&lock);
    off_t offset = lseek(file, 0, fcntl(file, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    ssize_t written = fails('W') ? -1 : REAL(write)(file, data, bytes);
    if (written > 0) record('W', path_of[file], offset, data, written);
    pthread_mutex_unlock(&lock);
    return written;
}

int ftruncate64(int file, off64_t length) {
    if (!watched(file)) return REAL(ftruncate64)(file, length);
    pthread_mutex_lock(&lock);
    int result = fails('T') ? -1 : REAL(ftruncate64)(file, length);
    if (!result) record('T', path_of[file], length, 0, 0);
    pthread_mutex_unlock(&lock);
    return result;
}
int ftruncate(int file, off_t length) { return ftruncate64(file, length); }

static int sync_with(int (*real)(int), char what, int file) {
    if (!watched(file)) return real(file);
    pthread_mutex_lock(&lock);
    int failed = fails('S'), error = errno, result = failed ? -1 : real(file);
    if (failed || !result) record(failed ? 'F' : what, path_of[file], 0, 0, 0);
    if (failed) errno = error;
    pthread_mutex_unlock(&lock);
    return result;
}
int fsync(int file) { return sync_with(REAL(fsync), 'S', file); }
int fdatasync(int file) { return sync_with(REAL(fdatasync), 'D', file); }

int unlink(const char *path) {
    int result = REAL(unlink)(path);
    if (!result && watched_path(path)) record('U', path, 0, 0, 0);
    return result;
}
int symlink(const char *target, const char *path) {
    int result = REAL(symlink)(target, path);
    if (!result && watched_path(path)) record('L', path, 0, target, strlen(target));
    return result;
}
int rename(const char *from, const char *to) {
    int result = REAL(rename)(from, to);
    if (!result && watched_path(from)) record('R', from, 0, to, strlen(to));
    return result;
}
