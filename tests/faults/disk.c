/*
 * Injects disk faults into a relay and records its operations on the disk; shifts the wall clock, and resolves the
 * name moving.test as the test says. LD_PRELOAD loads this library between the program (SQLite and Rust's standard
 * library) and the C library.
 *
 * It affects only files below one folder and standard output, and does nothing without these variables:
 *
 *   FAULTS_FOLDER   the folder, as realpath(3) returns it
 *   FAULTS_CONTROL  a file that contains `struct control`. It is mapped, so a change by the test applies to the
 *                   next call, and the test can read the counters
 *   FAULTS_TRACE    optional: a file to which every change to the folder and every write to standard output is
 *                   appended, in order
 *
 * It wraps the calls that the program makes, and similar ones. It does not wrap dup, fopen, io_uring and writable
 * mmap, which nothing here uses for files in the folder (SQLite maps only its -shm file, which is useless after a
 * power cut).
 *
 * tests/rig/faults.rs writes `struct control`; tests/power_cut/trace.rs reads the trace.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

/* Words of 64 bits. The test writes the settings, this library the counters. */
struct control {
  int64_t write_errno;  /* writes fail with this error, and truncations once a write has failed */
  int64_t write_budget; /* ... after this many bytes */
  int64_t read_errno;   /* reads fail with this error */
  int64_t sync_errno;   /* syncs fail with this error, and sync nothing */
  int64_t sync_fails;   /* ... this many of them; -1: all */
  int64_t sync_delay;   /* nanoseconds added to every sync */
  int64_t sync_hang;    /* syncs wait while this is not 0 */
  int64_t capacity;     /* bytes of the disk; 0: the real capacity */
  int64_t clock_offset; /* nanoseconds added to the wall clock */
  int64_t output_errno; /* writes to standard output fail with this error, so that the sink is down */
  int64_t host_address; /* the IPv4 address of the host moving.test; 0: the name does not resolve */
  int64_t file_system;  /* what statfs reports as the type of every file system; 0: the real one */
  int64_t kernel_clock; /* what the kernel says of its clock: 1 synchronised, 2 not; 0: the truth */
  char only[56];        /* only files whose path has this suffix fail; empty: all */
  int64_t reads, writes, syncs, opens, clock_reads;
  int64_t failed_reads, failed_writes, failed_syncs;
};

/* The head of a record, little-endian. The path relative to the folder and the data follow it. */
struct record {
  uint32_t op;
  uint32_t path_length;
  uint64_t at; /* CLOCK_MONOTONIC after the call, in nanoseconds */
  uint64_t number;
  uint64_t data_length;
};
enum {
  WRITE = 1,       /* number: offset */
  TRUNCATE = 2,    /* number: length */
  CREATE = 3,      /* a new empty file */
  MAKE_FOLDER = 4,
  REMOVE = 5,
  RENAME = 6,      /* data: the new path */
  SYNC = 7,        /* of a file or a folder; number: the length of the trace when it began */
  OUTPUT = 8,      /* written to standard output */
  SYNC_FAILED = 9, /* like SYNC */
};

#define FILES 65536
#define MAX_HANG_SLEEPS 30000 /* of 2 ms each, so one minute: the hang must end even if the test has died */

static volatile struct control *control;
static char folder[PATH_MAX];
static size_t folder_length;
static int trace = -1;
static uint64_t trace_length;
/* Held while a change is made and recorded, so that the trace has the order of the changes. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* The relative path of each open file below the folder; `unlinked` if the file was removed. */
static char *paths[FILES];
static char unlinked[] = "";
static __thread int in_library; /* not 0 while this library makes calls of its own */

/* `real` is the C library's function of this name. */
#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int64_t count(volatile int64_t *counter) { return __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED); }

static uint64_t monotonic(void) {
  REAL(clock_gettime);
  struct timespec now;
  real(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void sleep_for(int64_t nanoseconds) {
  struct timespec pause = {nanoseconds / 1000000000, nanoseconds % 1000000000};
  while (nanosleep(&pause, &pause) != 0 && errno == EINTR) {
  }
}

static void write_all(int fd, const void *bytes, size_t length) {
  static ssize_t (*real)(int, const void *, size_t);
  if (!real) real = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
  while (length > 0) {
    ssize_t done = real(fd, bytes, length);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) abort(); /* an incomplete trace is useless */
    bytes = (const char *)bytes + done;
    length -= (size_t)done;
  }
}

__attribute__((constructor)) static void begin(void) {
  const char *control_path = getenv("FAULTS_CONTROL");
  const char *folder_path = getenv("FAULTS_FOLDER");
  const char *trace_path = getenv("FAULTS_TRACE");
  if (!control_path || !folder_path || !folder_path[0]) return;
  folder_length = strlen(folder_path);
  if (folder_length >= sizeof folder) abort();
  memcpy(folder, folder_path, folder_length + 1);
  in_library = 1;
  int fd = open(control_path, O_RDWR | O_CLOEXEC);
  if (fd < 0) abort();
  void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) abort();
  close(fd);
  if (trace_path) {
    trace = open(trace_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (trace < 0) abort();
    trace_length = (uint64_t)lseek(trace, 0, SEEK_END);
  }
  in_library = 0;
  control = mapped;
}

/* --- paths and file descriptors -------------------------------------------------------------------- */

/* The path relative to the folder ("" for the folder itself), or NULL if it is outside. */
static const char *path_in_folder(const char *absolute) {
  if (!control || strncmp(absolute, folder, folder_length) != 0) return NULL;
  if (absolute[folder_length] == 0) return "";
  return absolute[folder_length] == '/' ? absolute + folder_length + 1 : NULL;
}

/*
 * The same for a path that the program passes to a call like openat. A path that is relative to another folder than
 * the current one counts as outside. `buffer` has PATH_MAX bytes.
 */
static const char *relative_path(int at, const char *path, char *buffer) {
  if (!control || in_library || !path) return NULL;
  if (path[0] == '/') return path_in_folder(path);
  if (at != AT_FDCWD || !getcwd(buffer, PATH_MAX - 1)) return NULL;
  size_t length = strlen(buffer);
  while (path[0] == '.' && path[1] == '/') path += 2;
  if (length + 1 + strlen(path) >= PATH_MAX) return NULL;
  buffer[length] = '/';
  strcpy(buffer + length + 1, path);
  if (strcmp(path, ".") == 0) buffer[length] = 0;
  return path_in_folder(buffer);
}

static const char *path_of(int fd) { return control && !in_library && fd >= 0 && fd < FILES ? paths[fd] : NULL; }

static int is_selected(const char *path) {
  size_t wanted = strnlen((const char *)control->only, sizeof control->only), length = strlen(path);
  return wanted <= length && strncmp(path + length - wanted, (const char *)control->only, wanted) == 0;
}

/* The caller holds the lock. */
static void record(uint32_t op, const char *path, uint64_t number, const void *data, size_t data_length) {
  if (trace < 0 || (op != OUTPUT && path == unlinked)) return;
  struct record head = {op, (uint32_t)strlen(path), monotonic(), number, data_length};
  size_t length = sizeof head + head.path_length + data_length;
  char *whole = malloc(length); /* one write, so that a kill rarely leaves an incomplete record */
  if (!whole) abort();
  memcpy(whole, &head, sizeof head);
  memcpy(whole + sizeof head, path, head.path_length);
  if (data_length) memcpy(whole + sizeof head + head.path_length, data, data_length);
  write_all(trace, whole, length);
  free(whole);
  trace_length += length;
}

/* --- faults ---------------------------------------------------------------------------------------- */

static int64_t used_in(const char *path) {
  int64_t used = 0;
  DIR *entries = opendir(path);
  if (!entries) return 0;
  for (struct dirent *entry; (entry = readdir(entries));) {
    struct stat found;
    char inner[PATH_MAX];
    if (entry->d_name[0] == '.' || strlen(path) + strlen(entry->d_name) + 2 > sizeof inner) continue;
    strcpy(stpcpy(stpcpy(inner, path), "/"), entry->d_name);
    if (lstat(inner, &found) != 0) continue;
    used += S_ISDIR(found.st_mode) ? used_in(inner) : (found.st_size + 4095) / 4096 * 4096;
  }
  closedir(entries);
  return used;
}

static int64_t free_bytes(void) {
  int64_t left = control->capacity - used_in(folder);
  return left > 0 ? left : 0;
}

/* Whether a write that ends at `end` must fail; if so, sets errno. */
static int write_fails(int fd, const char *path, int64_t length, int64_t end) {
  count(&control->writes);
  int error = 0;
  if (control->write_errno && is_selected(path)) {
    if (__atomic_fetch_sub(&control->write_budget, length, __ATOMIC_RELAXED) < length) error = (int)control->write_errno;
  }
  struct stat found;
  if (!error && control->capacity && fstat(fd, &found) == 0 && end > found.st_size) {
    int64_t more = (end + 4095) / 4096 * 4096 - (found.st_size + 4095) / 4096 * 4096;
    if (more > free_bytes()) error = ENOSPC;
  }
  if (!error) return 0;
  count(&control->failed_writes);
  errno = error;
  return 1;
}

static int read_fails(int fd) {
  const char *path = path_of(fd);
  if (!path) return 0;
  count(&control->reads);
  if (!control->read_errno || !is_selected(path)) return 0;
  count(&control->failed_reads);
  errno = (int)control->read_errno;
  return 1;
}

static int sync_file(int fd, int (*real)(int)) {
  const char *path = path_of(fd);
  if (!path) return real(fd);
  count(&control->syncs);
  pthread_mutex_lock(&lock);
  uint64_t began = trace_length;
  pthread_mutex_unlock(&lock);
  if (is_selected(path)) {
    for (int sleeps = 0; control->sync_hang && sleeps < MAX_HANG_SLEEPS; sleeps++) sleep_for(2000000);
    if (control->sync_delay) sleep_for(control->sync_delay);
    if (control->sync_errno && control->sync_fails) {
      if (control->sync_fails > 0) control->sync_fails--;
      count(&control->failed_syncs);
      pthread_mutex_lock(&lock);
      record(SYNC_FAILED, path, began, NULL, 0);
      pthread_mutex_unlock(&lock);
      errno = (int)control->sync_errno;
      return -1;
    }
  }
  int done = real(fd);
  if (done == 0) {
    pthread_mutex_lock(&lock);
    record(SYNC, path, began, NULL, 0);
    pthread_mutex_unlock(&lock);
  }
  return done;
}

int fsync(int fd) {
  REAL(fsync);
  return sync_file(fd, real);
}
int fdatasync(int fd) {
  REAL(fdatasync);
  return sync_file(fd, real);
}

/* --- files: open, close, read, write --------------------------------------------------------------- */

typedef int open_function(const char *, int, ...);
typedef int openat_function(int, const char *, int, ...);

static int open_any(open_function *real, openat_function *real_at, int at, const char *path, int flags, mode_t mode) {
  char buffer[PATH_MAX], name[32];
  const char *inner_path = relative_path(at, path, buffer);
  if (!inner_path) return real ? real(path, flags, mode) : real_at(at, path, flags, mode);
  pthread_mutex_lock(&lock);
  struct stat before;
  int was_there = fstatat(at, path, &before, 0) == 0;
  int fd = real ? real(path, flags, mode) : real_at(at, path, flags, mode);
  int error = errno;
  if (fd >= 0) {
    count(&control->opens);
    if (fd >= FILES) abort();
    /* Find the path of the opened file, with symbolic links resolved. */
    char found[PATH_MAX];
    strcpy(name, "/proc/self/fd/");
    char digits[12];
    int n = 0;
    for (int rest = fd; rest > 0 || n == 0; rest /= 10) digits[n++] = (char)('0' + rest % 10);
    for (size_t end = strlen(name); n >= 0; end++) name[end] = n-- > 0 ? digits[n] : 0;
    ssize_t length = readlink(name, found, sizeof found - 1);
    if (length > 0) {
      found[length] = 0;
      const char *real_place = path_in_folder(found);
      if (real_place) {
        free(paths[fd] == unlinked ? NULL : paths[fd]);
        paths[fd] = strdup(real_place);
        if (!was_there && (flags & O_CREAT)) record(CREATE, paths[fd], 0, NULL, 0);
        if (was_there && (flags & O_TRUNC)) record(TRUNCATE, paths[fd], 0, NULL, 0);
      }
    }
  }
  pthread_mutex_unlock(&lock);
  errno = error;
  return fd;
}

#define MODE(flags) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | __O_TMPFILE)) { \
    va_list rest; \
    va_start(rest, flags); \
    mode = va_arg(rest, mode_t); \
    va_end(rest); \
  }
int open(const char *path, int flags, ...) {
  REAL(open);
  MODE(flags)
  return open_any(real, NULL, AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  REAL(open64);
  MODE(flags)
  return open_any(real, NULL, AT_FDCWD, path, flags, mode);
}
int openat(int at, const char *path, int flags, ...) {
  REAL(openat);
  MODE(flags)
  return open_any(NULL, real, at, path, flags, mode);
}
int openat64(int at, const char *path, int flags, ...) {
  REAL(openat64);
  MODE(flags)
  return open_any(NULL, real, at, path, flags, mode);
}
int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int fd) {
  REAL(close);
  if (path_of(fd)) {
    pthread_mutex_lock(&lock);
    if (paths[fd] != unlinked) free(paths[fd]);
    paths[fd] = NULL;
    pthread_mutex_unlock(&lock);
  }
  return real(fd);
}

ssize_t read(int fd, void *to, size_t length) {
  REAL(read);
  return read_fails(fd) ? -1 : real(fd, to, length);
}
ssize_t pread(int fd, void *to, size_t length, off_t offset) {
  REAL(pread);
  return read_fails(fd) ? -1 : real(fd, to, length, offset);
}
ssize_t pread64(int fd, void *to, size_t length, off64_t offset) {
  REAL(pread64);
  return read_fails(fd) ? -1 : real(fd, to, length, offset);
}
ssize_t readv(int fd, const struct iovec *to, int parts) {
  REAL(readv);
  return read_fails(fd) ? -1 : real(fd, to, parts);
}

/* The offset of a write that has none of its own. The caller holds the lock. */
static int64_t position(int fd) {
  int flags = fcntl(fd, F_GETFL);
  struct stat found;
  if (flags >= 0 && (flags & O_APPEND) && fstat(fd, &found) == 0) return found.st_size;
  return lseek(fd, 0, SEEK_CUR);
}

/* Runs `call` as a write of `length` bytes at `offset` (-1: at the file's position). */
#define WRITES(fd, from, length, offset, call) \
  const char *path = path_of(fd); \
  if (!path) { \
    if ((fd) == STDOUT_FILENO && control && control->output_errno) return errno = (int)control->output_errno, -1; \
    ssize_t out = call; \
    if ((fd) == STDOUT_FILENO && out > 0 && control && !in_library && trace >= 0) { \
      int error = errno; \
      pthread_mutex_lock(&lock); \
      record(OUTPUT, "", 0, from, (size_t)out); \
      pthread_mutex_unlock(&lock); \
      errno = error; \
    } \
    return out; \
  } \
  pthread_mutex_lock(&lock); \
  int64_t start = (offset) >= 0 ? (int64_t)(offset) : position(fd); \
  ssize_t done = write_fails(fd, path, (int64_t)(length), start + (int64_t)(length)) ? -1 : call; \
  int error = errno; \
  if (done > 0) record(WRITE, path, (uint64_t)start, from, (size_t)done); \
  pthread_mutex_unlock(&lock); \
  errno = error; \
  return done

ssize_t write(int fd, const void *from, size_t length) {
  REAL(write);
  WRITES(fd, from, length, -1, real(fd, from, length));
}
ssize_t pwrite(int fd, const void *from, size_t length, off_t offset) {
  REAL(pwrite);
  WRITES(fd, from, length, offset, real(fd, from, length, offset));
}
ssize_t pwrite64(int fd, const void *from, size_t length, off64_t offset) {
  REAL(pwrite64);
  WRITES(fd, from, length, offset, real(fd, from, length, offset));
}
/* Writes only the first non-empty part: a short write, which every caller must handle. */
ssize_t writev(int fd, const struct iovec *from, int parts) {
  REAL(writev);
  if ((!path_of(fd) && fd != STDOUT_FILENO) || parts < 1) return real(fd, from, parts);
  while (parts > 1 && from->iov_len == 0) from++, parts--;
  return write(fd, from->iov_base, from->iov_len);
}

static int truncate_file(int fd, int64_t length, int (*real)(int, off64_t)) {
  const char *path = path_of(fd);
  if (!path) return real(fd, length);
  pthread_mutex_lock(&lock);
  /* Growing a file without writing to it takes no space, and shrinking it does not either. */
  int fails = control->write_errno != ENOSPC && write_fails(fd, path, 0, 0);
  int done = fails ? -1 : real(fd, length);
  int error = errno;
  if (done == 0) record(TRUNCATE, path, (uint64_t)length, NULL, 0);
  pthread_mutex_unlock(&lock);
  errno = error;
  return done;
}
int ftruncate(int fd, off_t length) {
  REAL(ftruncate);
  return truncate_file(fd, length, real);
}
int ftruncate64(int fd, off64_t length) {
  REAL(ftruncate64);
  return truncate_file(fd, length, real);
}

/* Not supported below the folder, so that callers fall back to read and write. */
#define REJECT_IN_FOLDER(fd) \
  if (path_of(fd)) return errno = EOPNOTSUPP, -1
int fallocate(int fd, int mode, off_t offset, off_t length) {
  REAL(fallocate);
  REJECT_IN_FOLDER(fd);
  return real(fd, mode, offset, length);
}
int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
  REAL(fallocate64);
  REJECT_IN_FOLDER(fd);
  return real(fd, mode, offset, length);
}
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags) {
  REAL(copy_file_range);
  REJECT_IN_FOLDER(in);
  REJECT_IN_FOLDER(out);
  return real(in, from, out, to, length, flags);
}
ssize_t sendfile64(int out, int in, off64_t *from, size_t length) {
  static ssize_t (*real)(int, int, off64_t *, size_t);
  if (!real) real = (ssize_t(*)(int, int, off64_t *, size_t))dlsym(RTLD_NEXT, "sendfile64");
  if (path_of(in) || path_of(out)) return errno = EINVAL, -1;
  return real(out, in, from, length);
}

/* --- folders: make, remove, rename ----------------------------------------------------------------- */

/* Changes the path of open files from `from` to `to`, or to `unlinked` if `to` is NULL. The caller holds the lock. */
static void update_paths(const char *from, const char *to) {
  for (int fd = 0; fd < FILES; fd++) {
    if (!paths[fd] || paths[fd] == unlinked || strcmp(paths[fd], from) != 0) continue;
    free(paths[fd]);
    paths[fd] = to ? strdup(to) : unlinked;
  }
}

/* Makes the call under the lock, and runs `after` if it succeeds. */
#define CHANGES(at, path, call, after) \
  char buffer[PATH_MAX]; \
  const char *changed = relative_path(at, path, buffer); \
  if (!changed) return call; \
  pthread_mutex_lock(&lock); \
  int done = call; \
  int error = errno; \
  if (done == 0) { \
    after; \
  } \
  pthread_mutex_unlock(&lock); \
  errno = error; \
  return done
#define REMOVED record(REMOVE, changed, 0, NULL, 0), update_paths(changed, NULL)

int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  CHANGES(AT_FDCWD, path, real(path, mode), record(MAKE_FOLDER, changed, 0, NULL, 0));
}
int unlink(const char *path) {
  REAL(unlink);
  CHANGES(AT_FDCWD, path, real(path), REMOVED);
}
int unlinkat(int at, const char *path, int flags) {
  REAL(unlinkat);
  CHANGES(at, path, real(at, path, flags), REMOVED);
}
int rmdir(const char *path) {
  REAL(rmdir);
  CHANGES(AT_FDCWD, path, real(path), REMOVED);
}

static void renamed(const char *from, int to_at, const char *to) {
  char buffer[PATH_MAX];
  const char *target = relative_path(to_at, to, buffer);
  if (!target) { /* moved out of the folder */
    record(REMOVE, from, 0, NULL, 0);
    update_paths(from, NULL);
    return;
  }
  record(RENAME, from, 0, target, strlen(target));
  update_paths(target, NULL);
  update_paths(from, target);
}
int rename(const char *from, const char *to) {
  REAL(rename);
  CHANGES(AT_FDCWD, from, real(from, to), renamed(changed, AT_FDCWD, to));
}
int renameat(int from_at, const char *from, int to_at, const char *to) {
  REAL(renameat);
  CHANGES(from_at, from, real(from_at, from, to_at, to), renamed(changed, to_at, to));
}
int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
  REAL(renameat2);
  CHANGES(from_at, from, real(from_at, from, to_at, to, flags), renamed(changed, to_at, to));
}
int link(const char *from, const char *to) {
  REAL(link);
  char buffer[PATH_MAX];
  /* The trace cannot describe two names of one file. */
  if (relative_path(AT_FDCWD, from, buffer) || relative_path(AT_FDCWD, to, buffer)) return errno = EPERM, -1;
  return real(from, to);
}

/* --- free space and the wall clock ----------------------------------------------------------------- */

#define REPORT_FREE(type) \
  static int report_free_##type(int done, struct type *disk) { \
    if (done != 0 || !control->capacity) return done; \
    disk->f_bsize = disk->f_frsize = 4096; \
    disk->f_blocks = (fsblkcnt_t)control->capacity / 4096; \
    disk->f_bfree = disk->f_bavail = (fsblkcnt_t)free_bytes() / 4096; \
    return 0; \
  }
REPORT_FREE(statvfs)
REPORT_FREE(statvfs64)

int statvfs(const char *path, struct statvfs *disk) {
  REAL(statvfs);
  char buffer[PATH_MAX];
  int done = real(path, disk);
  return relative_path(AT_FDCWD, path, buffer) ? report_free_statvfs(done, disk) : done;
}
int statvfs64(const char *path, struct statvfs64 *disk) {
  REAL(statvfs64);
  char buffer[PATH_MAX];
  int done = real(path, disk);
  return relative_path(AT_FDCWD, path, buffer) ? report_free_statvfs64(done, disk) : done;
}
int fstatvfs(int fd, struct statvfs *disk) {
  REAL(fstatvfs);
  int done = real(fd, disk);
  return path_of(fd) ? report_free_statvfs(done, disk) : done;
}
int fstatvfs64(int fd, struct statvfs64 *disk) {
  REAL(fstatvfs64);
  int done = real(fd, disk);
  return path_of(fd) ? report_free_statvfs64(done, disk) : done;
}

int statfs(const char *path, struct statfs *disk) {
  REAL(statfs);
  int done = real(path, disk);
  if (done == 0 && control && control->file_system) disk->f_type = control->file_system;
  return done;
}
int statfs64(const char *path, struct statfs64 *disk) {
  REAL(statfs64);
  int done = real(path, disk);
  if (done == 0 && control && control->file_system) disk->f_type = control->file_system;
  return done;
}

int adjtimex(struct timex *clock) {
  REAL(adjtimex);
  int state = real(clock);
  if (!control || !control->kernel_clock) return state;
  clock->status = control->kernel_clock == 1 ? clock->status & ~STA_UNSYNC : clock->status | STA_UNSYNC;
  return control->kernel_clock == 1 ? TIME_OK : TIME_ERROR;
}

static void shift(struct timespec *time, int64_t by) {
  int64_t nanoseconds = time->tv_nsec + by % 1000000000;
  time->tv_sec += by / 1000000000;
  if (nanoseconds < 0) nanoseconds += 1000000000, time->tv_sec--;
  if (nanoseconds >= 1000000000) nanoseconds -= 1000000000, time->tv_sec++;
  time->tv_nsec = nanoseconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  REAL(clock_gettime);
  int done = real(clock, now);
  if (done != 0 || !control || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return done;
  count(&control->clock_reads);
  shift(now, control->clock_offset);
  return 0;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec exact;
  (void)zone;
  if (clock_gettime(CLOCK_REALTIME, &exact) != 0) return -1;
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *to) {
  struct timespec exact;
  if (clock_gettime(CLOCK_REALTIME, &exact) != 0) return -1;
  if (to) *to = exact.tv_sec;
  return exact.tv_sec;
}

/* A wait until a wall-clock time (librdkafka's) refers to the shifted clock. */
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
  REAL(pthread_cond_timedwait);
  struct timespec real_until = *until;
  if (control) shift(&real_until, -control->clock_offset);
  return real(condition, mutex, &real_until);
}
int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
  REAL(cnd_timedwait);
  struct timespec real_until = *until;
  if (control) shift(&real_until, -control->clock_offset);
  return real(condition, mutex, &real_until);
}

int getaddrinfo(const char *restrict host, const char *restrict service, const struct addrinfo *restrict hints,
                struct addrinfo **restrict found) {
  REAL(getaddrinfo);
  if (!control || !host || strcmp(host, "moving.test") != 0) return real(host, service, hints, found);
  struct in_addr address = {htonl((uint32_t)control->host_address)};
  char text[INET_ADDRSTRLEN];
  if (address.s_addr == 0) return EAI_NONAME;
  return real(inet_ntop(AF_INET, &address, text, sizeof text), service, hints, found);
}
