// SPDX-License-Identifier: MIT
#include "timer.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kick.h"
#include "perf.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

void kc_timer_init(struct kc_timer *timer)
{
	struct timespec resolution;

	memset(timer, 0, sizeof(*timer));
	timer->kind = KC_TIMER_POSIX;
	timer->perf_fd = -1;
	timer->resolution_ns = 1;
	if (!clock_getres(CLOCK_MONOTONIC, &resolution))
		timer->resolution_ns =
			(uint64_t)resolution.tv_sec * 1000000000 + (uint64_t)resolution.tv_nsec;
}

void kc_timer_use_perf(struct kc_timer *timer, uint32_t type, uint64_t config, double frequency)
{
	timer->kind = KC_TIMER_PERF;
	timer->perf_type = type;
	timer->perf_config = config;
	timer->perf_frequency = frequency;
	/* The kernel lengthens a software clock's period to 10 us; a shorter one of a counter is a storm. */
	timer->resolution_ns = 10000;
}

static int attach_posix(struct kc_timer *timer, struct kc_error *err)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID,
				  .sigev_signo = kc_kick_signal() };

	event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
	if (timer_create(CLOCK_MONOTONIC, &event, &timer->posix))
		return kc_fail_os(err, "timer_create");
	return 0;
}

static int attach_perf(struct kc_timer *timer, struct kc_error *err)
{
	struct kc_perf_event event = {
		.type = timer->perf_type,
		.config = timer->perf_config,
		.period = 1ULL << 62, /* never, until it is armed */
		.group = -1,
		.disabled = true,
	};
	pid_t thread = (pid_t)syscall(SYS_gettid);
	int fd = kc_perf_open(&event, thread);

	if (fd < 0)
		return kc_perf_fail(errno, err);
	if (kc_perf_signal(fd, thread, kc_kick_signal())) {
		kc_fail_os(err, "fcntl of the overflow timer's counter");
		close(fd);
		return -1;
	}
	timer->perf_fd = fd;
	return 0;
}

int kc_timer_attach(struct kc_timer *timer, struct kc_error *err)
{
	if (timer->kind == KC_TIMER_PERF ? attach_perf(timer, err) : attach_posix(timer, err))
		return -1;
	timer->attached = true;
	return 0;
}

void kc_timer_detach(struct kc_timer *timer)
{
	if (!timer->attached)
		return;
	timer->attached = timer->armed = false;
	if (timer->kind == KC_TIMER_POSIX) {
		timer_delete(timer->posix);
	} else {
		close(timer->perf_fd);
		timer->perf_fd = -1;
	}
}

int kc_timer_arm(struct kc_timer *timer, uint64_t ns, struct kc_error *err)
{
	timer->armed = true;
	if (ns < timer->resolution_ns)
		ns = timer->resolution_ns;
	if (timer->kind == KC_TIMER_POSIX) {
		/* A time that does not fit is as good as never: some 292 years. */
		struct itimerspec spec = {
			.it_value.tv_sec = (time_t)(ns / 1000000000),
			.it_value.tv_nsec = (long)(ns % 1000000000),
		};

		if (timer_settime(timer->posix, 0, &spec, NULL))
			return kc_fail_os(err, "timer_settime");
	} else {
		double events = (double)ns * timer->perf_frequency / 1e9;
		uint64_t period = events < 1 ? 1 : events > 0x1p62 ? 1ULL << 62 : (uint64_t)events;

		if (ioctl(timer->perf_fd, PERF_EVENT_IOC_DISABLE, 0) ||
		    ioctl(timer->perf_fd, PERF_EVENT_IOC_PERIOD, &period) ||
		    ioctl(timer->perf_fd, PERF_EVENT_IOC_REFRESH, 1))
			return kc_fail_os(err, "arming the overflow timer");
	}
	return 0;
}

int kc_timer_disarm(struct kc_timer *timer, struct kc_error *err)
{
	static const struct itimerspec never;

	if (!timer->armed)
		return 0;
	timer->armed = false;
	if (timer->kind == KC_TIMER_POSIX) {
		if (timer_settime(timer->posix, 0, &never, NULL))
			return kc_fail_os(err, "timer_settime");
	} else if (ioctl(timer->perf_fd, PERF_EVENT_IOC_DISABLE, 0)) {
		return kc_fail_os(err, "disarming the overflow timer");
	}
	return 0;
}
