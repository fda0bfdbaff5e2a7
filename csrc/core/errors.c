// SPDX-License-Identifier: MIT
#include "errors.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int kc_fail(struct kc_error *err, enum kc_error_kind kind, const char *format, ...)
{
	va_list args;

	memset(err, 0, sizeof(*err));
	err->kind = kind;
	va_start(args, format);
	vsnprintf(err->message, sizeof(err->message), format, args);
	va_end(args);
	return -1;
}

/* What a user can do about the errors that are not self-explanatory. */
static const char *hint(int error)
{
	switch (error) {
	case EIO:
		return ": a virtual machine belongs to the process that made it";
	case EAGAIN:
		return ": a limit of this user is used up, of pending signals and timers (ulimit -i) or of "
		       "processes (ulimit -u)";
	case EMFILE:
		return ": raise the limit of open files (ulimit -n)";
	case EINTR:
		return ": interrupted by a signal, try again";
	case EEXIST:
		return ": it exists already";
	default:
		return "";
	}
}

int kc_fail_os(struct kc_error *err, const char *what)
{
	int error = errno;
	char text[128];

	kc_fail(err, error == ENOMEM ? KC_ERR_MEMORY : KC_ERR_OS, "%s: %s%s", what,
		strerror_r(error, text, sizeof(text)), hint(error));
	err->os_errno = error;
	return -1;
}
