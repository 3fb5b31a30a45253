/* Preloaded into a process, counts what it does to the files of a folder, and ends it, or fills its disk, at a chosen one of these.
   What the C library does inside itself (fopen) goes by unseen; all of Python's, Rust's and C++'s writing is seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096];
static long kill_at = -1, seen;
static long long room = -1;
static int told = -1;

/* Below this folder: end at event `at`, let writes fail for want of space after `bytes`, name all events in the file `log`. -1: never. */
void moments(const char *below, long at, long long bytes, int log) {
    snprintf(folder, sizeof folder, "%s", below);
    kill_at = at, room = bytes, told = log, seen = 0;
}

static const char *where(int fd, const char *path, char *place) {
    static const char none[] = "";
    char link[64];
    if (!folder[0]) return none;
    if (path && path[0] == '/') return path;
    if (fd == AT_FDCWD) return none;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, place, 4095);
    place[n < 0 ? 0 : n] = 0;
    return place;
}

/* -> 1 where this is the event to die at, 0 where it goes on. */
static int event(const char *what, int fd, const char *path, size_t bytes) {
    char place[4096];
    const char *name = where(fd, path, place);
    size_t n = strlen(folder);
    if (!n || strncmp(name, folder, n)) return 0;
    ++seen;
    int relative = path && path != name;
    if (told >= 0) dprintf(told, "%s %s%s%s %zu\n", what, name, relative ? "/" : "", relative ? path : "", bytes);
    return seen == kill_at;
}

static int below(int fd, const char *path) {
    char place[4096];
    size_t n = strlen(folder);
    return n && !strncmp(where(fd, path, place), folder, n);
}

static void die(void) { raise(SIGKILL); }

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* How much of a write there is room for; 0 with errno where there is none. A write that is died at is done by half. */
static size_t fits(int fd, size_t n) {
    if (!n) return 0;
    if (event("write", fd, NULL, n)) kill_at = -2, n = n > 1 ? n / 2 : n;
    if (room >= 0 && below(fd, NULL)) {
        if ((long long)n > room) n = room;
        room -= n;
    }
    return n;
}
#define WRITE(call) \
    size_t left = fits(fd, n); \
    if (n && !left) return errno = ENOSPC, -1; \
    ssize_t done = call; \
    if (kill_at == -2) die(); \
    return done;

ssize_t write(int fd, const void *data, size_t n) {
    REAL(ssize_t, write, int, const void *, size_t);
    WRITE(real(fd, data, left))
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    WRITE(real(fd, data, left, at))
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    size_t n = 0;
    for (int i = 0; i < count; ++i) n += parts[i].iov_len;
    for (int i = 0; i < count; ++i)
        if (parts[i].iov_len) return write(fd, parts[i].iov_base, parts[i].iov_len); /* a short write, which callers go on from */
    return 0;
}
ssize_t sendfile64(int fd, int from, off64_t *at, size_t n) {
    REAL(ssize_t, sendfile64, int, int, off64_t *, size_t);
    WRITE(real(fd, from, at, left))
}

#define PATHS(name, parameters, arguments, fd, path) \
    int name parameters { \
        static int(*real) parameters; \
        if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name); \
        if (event(#name, fd, path, 0)) die(); \
        return real arguments; \
    }
PATHS(rename, (const char *a, const char *b), (a, b), AT_FDCWD, b)
PATHS(renameat, (int f, const char *a, int g, const char *b), (f, a, g, b), g, b)
PATHS(unlink, (const char *a), (a), AT_FDCWD, a)
PATHS(unlinkat, (int f, const char *a, int flags), (f, a, flags), f, a)
PATHS(rmdir, (const char *a), (a), AT_FDCWD, a)
PATHS(mkdir, (const char *a, mode_t m), (a, m), AT_FDCWD, a)
PATHS(ftruncate64, (int fd, off64_t n), (fd, n), fd, NULL)
PATHS(fsync, (int fd), (fd), fd, NULL)

#define OPEN(name, parameters, arguments, fd) \
    int name parameters { \
        static int (*real)(); \
        mode_t mode = 0; \
        if (!real) real = (int (*)())dlsym(RTLD_NEXT, #name); \
        if (flags & O_CREAT) { \
            va_list more; \
            va_start(more, flags), mode = va_arg(more, mode_t), va_end(more); \
            if (event("open", fd, path, 0)) die(); \
        } \
        return real arguments; \
    }
OPEN(open, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPEN(openat, (int fd, const char *path, int flags, ...), (fd, path, flags, mode), fd)
OPEN(openat64, (int fd, const char *path, int flags, ...), (fd, path, flags, mode), fd)
