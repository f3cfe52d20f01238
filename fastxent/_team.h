/* A team of threads for the tasks of one call: the caller and those helpers that come in time.

   OpenMP's teams would do the same on a quiet machine. Beside a busy process they make the caller wait, again and again,
   for helpers that the system has not even let start, spinning meanwhile on the processor that those could have had;
   and a forked child hangs. Here the caller does every task that nobody else has taken, and waits for tasks alone that
   somebody is at. Helpers sleep between calls, after a moment in which the next call finds them awake. */

#ifndef FX_TEAM_H
#define FX_TEAM_H

#include <stddef.h>

/* Does one task; `thread` is 0 for the caller and differs among those who work at the same time. */
typedef void (*fx_body)(void* context, ptrdiff_t task, int thread);

/* Kernels round to nearest and keep subnormal numbers, whatever some library has told this thread to do. These two
   change it where it has to be, and back. */
#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#define FX_PLAIN 0x1f80u /* nothing but the masks of all exceptions */
#define FX_FLAGS 0x3fu   /* the exceptions that there have been */
#define fx_mode() _mm_getcsr()
#define fx_set_mode(mode) _mm_setcsr(mode)
#elif defined(__aarch64__) && defined(__GNUC__)
#define FX_PLAIN 0u
#define FX_FLAGS 0u /* are in another register */
static unsigned fx_mode(void) {
    unsigned long long mode;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(mode));
    return (unsigned)mode;
}
#define fx_set_mode(mode) __asm__ __volatile__("msr fpcr, %0" : : "r"((unsigned long long)(mode)))
#else
#define FX_PLAIN 0u
#define FX_FLAGS 0u
#define fx_mode() FX_PLAIN
#define fx_set_mode(mode) (void)(mode)
#endif

static unsigned fx_compute_plainly(void) {
    unsigned mode = fx_mode();
    if ((mode & ~FX_FLAGS) != FX_PLAIN) fx_set_mode(FX_PLAIN);
    return mode;
}

static void fx_compute_as(unsigned mode) {
    if ((mode & ~FX_FLAGS) != FX_PLAIN) fx_set_mode(mode);
}

static void fx_do_all(fx_body body, void* context, ptrdiff_t tasks) {
    for (ptrdiff_t task = 0; task < tasks; task++) body(context, task, 0);
}

#if defined(__GNUC__) && !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#define FX_THREADS 1
#define FX_MOMENT 1000 /* pauses: tens of microseconds */

#if defined(__x86_64__) || defined(__i386__)
#define fx_pause() __builtin_ia32_pause()
#else
#define fx_pause() __asm__ __volatile__("" ::: "memory")
#endif

static struct {
    pthread_mutex_t lock;
    pthread_cond_t call, done;
    int threads; /* that exist */
    int wanted;  /* helpers that may still join the call */
    int joined;  /* helpers that have */
    int active;  /* helpers at work */
    int taken;   /* whether some caller has the team */
    unsigned number; /* of the call */
    fx_body body;
    void* context;
    ptrdiff_t tasks, next;
} fx_team = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER};

static void fx_work(int thread) {
    ptrdiff_t task;
    while ((task = __atomic_fetch_add(&fx_team.next, 1, __ATOMIC_RELAXED)) < fx_team.tasks)
        fx_team.body(fx_team.context, task, thread);
}

static void* fx_help(void* nothing) {
    unsigned last = 0;
    int thread;
    (void)nothing;
    fx_compute_plainly();
    for (;;) {
        for (int i = 0; i < FX_MOMENT && __atomic_load_n(&fx_team.number, __ATOMIC_RELAXED) == last; i++) fx_pause();
        pthread_mutex_lock(&fx_team.lock);
        while (fx_team.wanted == 0 || fx_team.number == last) pthread_cond_wait(&fx_team.call, &fx_team.lock);
        last = fx_team.number;
        fx_team.wanted--;
        thread = ++fx_team.joined;
        __atomic_fetch_add(&fx_team.active, 1, __ATOMIC_RELAXED);
        pthread_mutex_unlock(&fx_team.lock);
        fx_work(thread);
        pthread_mutex_lock(&fx_team.lock);
        if (__atomic_sub_fetch(&fx_team.active, 1, __ATOMIC_RELEASE) == 0) pthread_cond_signal(&fx_team.done);
        pthread_mutex_unlock(&fx_team.lock);
    }
    return NULL;
}

/* Under the lock: as many helpers as that, if the system gives them; signals stay with the threads of the program. */
static void fx_hire(int helpers) {
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_t thread;
    if (fx_team.threads >= helpers) return;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 1 << 20);
    while (fx_team.threads < helpers && pthread_create(&thread, &attributes, fx_help, NULL) == 0) fx_team.threads++;
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Alone while another thread of the program has the team. */
static void fx_share_out(fx_body body, void* context, ptrdiff_t tasks, int threads) {
    if (__atomic_exchange_n(&fx_team.taken, 1, __ATOMIC_ACQUIRE)) {
        fx_do_all(body, context, tasks);
        return;
    }
    pthread_mutex_lock(&fx_team.lock);
    fx_hire(threads - 1);
    fx_team.body = body, fx_team.context = context, fx_team.tasks = tasks, fx_team.next = 0;
    fx_team.wanted = threads - 1 < fx_team.threads ? threads - 1 : fx_team.threads;
    fx_team.joined = 0;
    __atomic_fetch_add(&fx_team.number, 1, __ATOMIC_RELEASE);
    if (fx_team.wanted == 1) pthread_cond_signal(&fx_team.call);
    if (fx_team.wanted > 1) pthread_cond_broadcast(&fx_team.call);
    pthread_mutex_unlock(&fx_team.lock);
    fx_work(0);
    pthread_mutex_lock(&fx_team.lock);
    fx_team.wanted = 0;
    pthread_mutex_unlock(&fx_team.lock);
    for (int i = 0; i < FX_MOMENT && __atomic_load_n(&fx_team.active, __ATOMIC_ACQUIRE); i++) fx_pause();
    pthread_mutex_lock(&fx_team.lock);
    while (fx_team.active) pthread_cond_wait(&fx_team.done, &fx_team.lock);
    pthread_mutex_unlock(&fx_team.lock);
    __atomic_store_n(&fx_team.taken, 0, __ATOMIC_RELEASE);
}

#else
#define FX_THREADS 0
#define fx_share_out(body, context, tasks, threads) fx_do_all(body, context, tasks)
#endif

/* All tasks, by up to `threads` threads. */
static void fx_deal(fx_body body, void* context, ptrdiff_t tasks, int threads) {
    unsigned mode = fx_compute_plainly();
    if (threads > tasks) threads = (int)tasks;
    if (threads <= 1)
        fx_do_all(body, context, tasks);
    else
        fx_share_out(body, context, tasks, threads);
    fx_compute_as(mode);
}

#endif
