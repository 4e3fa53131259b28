/* LD_PRELOAD shim: every fsync and fdatasync takes FLUSH_DELAY_MS milliseconds longer, as on a disk that really flushes.
 * The real flush still happens; nothing else is touched. Flushes of different threads or processes overlap. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static struct timespec delay;

__attribute__((constructor)) static void prepare(void) {
    const char *text = getenv("FLUSH_DELAY_MS");
    long nanoseconds = text ? (long)(atof(text) * 1e6) : 0;
    delay.tv_sec = nanoseconds / 1000000000L;
    delay.tv_nsec = nanoseconds % 1000000000L;
    real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
}

static int delayed(int result) {
    int saved = errno;
    struct timespec left = delay;
    while (nanosleep(&left, &left) == -1 && errno == EINTR) { /* a signal (PostgreSQL uses many) must not shorten it */ }
    errno = saved;
    return result;
}

int fsync(int fd) { return delayed(real_fsync(fd)); }
int fdatasync(int fd) { return delayed(real_fdatasync(fd)); }
