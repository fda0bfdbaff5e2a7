// SPDX-License-Identifier: MIT
/* V10, V18: no kick is lost, none leaks, and the thread's signals are as they were. */
#include "guest.h"

#include <signal.h>

#define KICKS 20000

static struct guest guest;
static struct kc_vcpu *vcpu;
static atomic_bool over;
static atomic_uint asked, answered;

static void check_mask(const sigset_t *before)
{
	sigset_t now, pending;

	check(!pthread_sigmask(SIG_SETMASK, NULL, &now));
	for (int i = 1; i <= SIGRTMAX; i++)
		check(sigismember(before, i) == sigismember(&now, i));
	check(!sigpending(&pending) && !sigismember(&pending, kc_kick_signal()));
}

static void *stopper(void *arg)
{
	unsigned int seed = (unsigned int)(uintptr_t)arg;

	while (!atomic_load(&over)) {
		unsigned int before = atomic_load(&answered);
		uint64_t until = now_ns() + (uint64_t)rand_r(&seed) % 60000;

		while (now_ns() < until)
			if (rand_r(&seed) % 4 == 0)
				kc_kick(vcpu);
		if (!kc_vcpu_stop(vcpu))
			continue;
		atomic_fetch_add(&asked, 1);
		/* One that was accepted ends the run: soon, and not the next one's turn either. */
		until = now_ns() + 20000000000ULL;
		while (atomic_load(&answered) == before && !atomic_load(&over))
			check(now_ns() < until);
	}
	return NULL;
}

static void test_stops(void)
{
	pthread_t threads[2];
	sigset_t before;

	check(!pthread_sigmask(SIG_SETMASK, NULL, &before));
	for (uintptr_t i = 0; i < 2; i++)
		check(!pthread_create(&threads[i], NULL, stopper, (void *)(i + 1)));
	/* Were one lost, the guest would spin for ever. */
	for (int i = 0; i < KICKS; i++) {
		check(run_to_stop(vcpu) == KC_STOP_STOP);
		atomic_fetch_add(&answered, 1);
		if (i % 100 == 0)
			check_mask(&before);
	}
	atomic_store(&over, true);
	for (int i = 0; i < 2; i++)
		check(!pthread_join(threads[i], NULL));
	check(atomic_load(&asked) >= KICKS / 2);
	check_mask(&before);
	/* None leaks: runs that nobody stops last as long as they should. */
	for (int i = 0; i < 100; i++) {
		uint64_t passed;

		check_ok(run_for(vcpu, PS_PER_MS / 10, &passed));
		check(vcpu->stop_reason == KC_STOP_TICKS && passed >= PS_PER_MS / 10);
	}
	check_mask(&before);
	check(!kc_kick(vcpu) && !kc_vcpu_stop(vcpu)); /* nobody is there, nothing is kept */
	check_mask(&before);
	check_ok(run_for(vcpu, PS_PER_MS, NULL));
	check(vcpu->stop_reason == KC_STOP_TICKS);
}

static void *kicker(void *arg)
{
	unsigned int seed = 3;

	while (!atomic_load(&over)) {
		kc_kick(vcpu);
		if (rand_r(&seed) % 3 == 0)
			usleep((unsigned int)rand_r(&seed) % 100);
	}
	return NULL;
}

/* Kicks beside a timer: short runs, whose ends meet them. Each signal that is left over would end the process. */
static void test_kicks_and_timer(void)
{
	uint64_t passed;
	sigset_t before;
	pthread_t thread;

	atomic_store(&over, false);
	check(!pthread_sigmask(SIG_SETMASK, NULL, &before));
	check(!pthread_create(&thread, NULL, kicker, NULL));
	for (int i = 0; i < 5000; i++) {
		uint64_t ticks = PS_PER_MS / 1000 * (uint64_t)(1 + i % 60);

		check_ok(run_for(vcpu, ticks, &passed));
		check(vcpu->stop_reason == KC_STOP_TICKS && passed >= ticks);
		if (i % 50 == 0)
			check_mask(&before);
	}
	atomic_store(&over, true);
	check(!pthread_join(thread, NULL));
	check_mask(&before);
}

/* ---- the host program's own signals ---- */

static volatile sig_atomic_t alarms;
static volatile int64_t alarm_at;

static void on_alarm(int signal)
{
	alarms = alarms + 1;
	alarm_at = (int64_t)now_ns();
	if (alarms == 20)
		kc_vcpu_stop(vcpu);
}

static int asked_hook;
static int hook_result;

static int host_signals(void *opaque, struct kc_error *error)
{
	asked_hook++;
	return hook_result ? kc_fail(error, KC_ERR_CALLBACK, "interrupted") : 0;
}

static void test_alarm(void)
{
	struct sigaction action = { .sa_handler = on_alarm }, old, now;
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM };
	struct itimerspec every = { .it_value.tv_nsec = 2000000, .it_interval.tv_nsec = 2000000 };
	sigset_t before;
	timer_t timer;

	check(!pthread_sigmask(SIG_SETMASK, NULL, &before));
	check(!sigaction(SIGALRM, &action, &old));
	check(!timer_create(CLOCK_MONOTONIC, &event, &timer) &&
	      !timer_settime(timer, 0, &every, NULL));
	vcpu->hooks.host_signals = host_signals;
	/* The handler runs while the guest spins for ever, and what it does ends the run. */
	check(run_to_stop(vcpu) == KC_STOP_STOP);
	check(alarms >= 20 && asked_hook >= 19);
	check_mask(&before);
	check(!sigaction(SIGALRM, NULL, &now) && now.sa_handler == on_alarm);
	/* The hook may end it, as an exception of a handler does. */
	hook_result = -1;
	check(run_for(vcpu, KC_NEVER, NULL) == -1 && err.kind == KC_ERR_CALLBACK);
	hook_result = 0;
	check_mask(&before);
	check(!timer_delete(timer));
	check_ok(run_for(vcpu, PS_PER_MS, NULL)); /* it goes on afterwards */
	vcpu->hooks.host_signals = NULL;

	/* A signal that the thread has blocked stays so, also in the guest. */
	alarms = 0;
	check(!sigemptyset(&action.sa_mask) && !sigaddset(&action.sa_mask, SIGALRM));
	check(!pthread_sigmask(SIG_BLOCK, &action.sa_mask, NULL));
	check(!raise(SIGALRM));
	check_ok(run_for(vcpu, PS_PER_MS, NULL));
	check(!alarms);
	check(!pthread_sigmask(SIG_SETMASK, &before, NULL));
	check(alarms == 1);
	check(!sigaction(SIGALRM, &old, NULL));
}

/* One thread runs a vCPU inside a run of another: kicks find the right one. */
static struct kc_vcpu *inner;
static int inner_runs;

static void run_inner(struct recorder *recorder, struct kc_access *access)
{
	uint64_t passed;

	check_ok(kc_vcpu_claim(inner, &err));
	check_ok(kc_vcpu_run(inner, PS_PER_MS / 20, &passed, &err));
	check(inner->stop_reason == KC_STOP_TICKS);
	kc_vcpu_release(inner);
	inner_runs++;
}

static void *stop_outer(void *arg)
{
	while (!atomic_load(&over)) {
		usleep(700);
		kc_vcpu_stop(vcpu);
	}
	return NULL;
}

static void test_nested(void)
{
	static struct recorder recorder = { .then = run_inner };
	struct kc_range *range = map_recorder(&guest, KC_IO, 0x10, 1, &recorder);
	pthread_t thread;
	sigset_t before;

	check(range);
	check(!pthread_sigmask(SIG_SETMASK, NULL, &before));
	inner = make_vcpu(&guest);
	put_code(&guest, 0x2000, 0xe6, 0x10, 0xeb, 0xfc); /* out 0x10, al; back */
	put_code(&guest, CODE, 0xeb, 0xfe);
	set_start(vcpu, 0x2000);
	atomic_store(&over, false);
	check(!pthread_create(&thread, NULL, stop_outer, NULL));
	for (int i = 0; i < 200; i++) {
		check(run_to_stop(vcpu) == KC_STOP_STOP);
		check_mask(&before);
	}
	atomic_store(&over, true);
	check(!pthread_join(thread, NULL));
	check(inner_runs > 200);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	kc_vcpu_put(inner);
}

int main(void)
{
	guest = make_guest();
	vcpu = make_vcpu(&guest);
	put_code(&guest, CODE, 0xeb, 0xfe);
	test_stops();
	test_kicks_and_timer();
	test_alarm();
	test_nested();
	kc_vcpu_put(vcpu);
	free_guest(&guest);
	return 0;
}
