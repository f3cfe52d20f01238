/* `_team.h` alone, for ThreadSanitizer: Python and NumPy are not instrumented, and its reports of them would hide ours.

   Callers share the one team, as Python threads do: whoever finds it taken works alone. Every task has to be done once,
   by one thread of its call at a time, and what it wrote has to be seen by the caller without any further lock. */

#include <stdio.h>
#include <stdlib.h>

#include "_team.h"

enum { CALLERS = 4, CALLS = 2000, TASKS = 50, THREADS = 4 };

typedef struct {
    int done[TASKS];
    int by_thread[THREADS];
} work;

static void count(void* context, ptrdiff_t task, int thread) {
    work* w = context;
    w->done[task]++;
    w->by_thread[thread]++;
}

static void check(int call) {
    work w = {{0}, {0}};
    ptrdiff_t tasks = call % (TASKS + 1);
    int sum = 0;
    fx_deal(count, &w, tasks, 1 + call % THREADS);
    for (int task = 0; task < TASKS; task++)
        if (w.done[task] != (task < tasks)) abort();
    for (int thread = 0; thread < THREADS; thread++) sum += w.by_thread[thread];
    if (sum != tasks) abort();
}

static void* caller(void* nothing) {
    for (int call = 0; call < CALLS; call++) check(call);
    return nothing;
}

int main(void) {
    pthread_t callers[CALLERS];
    for (int i = 0; i < CALLERS; i++)
        if (pthread_create(&callers[i], NULL, caller, NULL)) return 1;
    for (int i = 0; i < CALLERS; i++) pthread_join(callers[i], NULL);
    printf("%d calls by %d callers and %d helpers\n", CALLERS * CALLS, CALLERS, fx_team.threads);
    return fx_team.threads != THREADS - 1;
}
