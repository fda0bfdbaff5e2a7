// SPDX-License-Identifier: MIT
#include "vcpu_new.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include "vcpu_parts.h"

static int parse_id(PyObject *value, int *id)
{
	uint64_t number;

	*id = -1;
	if (!value || value == Py_None)
		return 0;
	if (pc_uint(value, "id", INT_MAX, &number))
		return -1;
	*id = (int)number;
	return 0;
}

static int parse_name(PyObject *value, const char **name)
{
	Py_ssize_t size;

	if (!value || value == Py_None)
		return 0;
	if (!PyUnicode_Check(value)) {
		PyErr_Format(PyExc_TypeError, "name must be a str, not %.100s",
			     Py_TYPE(value)->tp_name);
		return -1;
	}
	*name = PyUnicode_AsUTF8AndSize(value, &size);
	if (!*name)
		return -1;
	if (size && size < (Py_ssize_t)sizeof(((struct kc_vcpu *)0)->name) &&
	    strlen(*name) == (size_t)size)
		return 0;
	PyErr_Format(PyExc_ValueError, "name must have 1 to %zu bytes and no null character",
		     sizeof(((struct kc_vcpu *)0)->name) - 1);
	return -1;
}

static int parse_queue(struct pc_state *state, PyObject *value, struct kc_queue **queue)
{
	if (!value || value == Py_None)
		return 0;
	if (Py_TYPE(value) != state->EventQueue) {
		PyErr_Format(PyExc_TypeError, "queue must be an EventQueue, not %.100s",
			     Py_TYPE(value)->tp_name);
		return -1;
	}
	*queue = ((struct pc_queue *)value)->queue;
	return 0;
}

static int parse_frequency(PyObject *value, double *hz)
{
	if (!value || value == Py_None)
		return 0;
	return pc_frequency(value, hz);
}

static int parse_source(const char *name, enum kc_time_source *source)
{
	static const struct {
		const char *name;
		enum kc_time_source source;
	} sources[] = {
		{ "auto", KC_TIME_AUTO },
		{ "perf", KC_TIME_PERF },
		{ "thread", KC_TIME_THREAD },
		{ "tsc", KC_TIME_TSC },
	};

	for (size_t i = 0; i < Py_ARRAY_LENGTH(sources); i++) {
		if (!strcmp(sources[i].name, name)) {
			*source = sources[i].source;
			return 0;
		}
	}
	PyErr_Format(PyExc_ValueError,
		     "time_source must be \"auto\", \"perf\", \"thread\" or \"tsc\", not \"%s\"",
		     name);
	return -1;
}

static int parse_event(PyObject *value, struct kc_vcpu_config *config)
{
	uint64_t type;

	if (!value || value == Py_None)
		return 0;
	if (!PyTuple_Check(value) || PyTuple_GET_SIZE(value) != 2) {
		PyErr_SetString(PyExc_TypeError, "perf_event must be a tuple (type, config)");
		return -1;
	}
	if (pc_uint(PyTuple_GET_ITEM(value, 0), "perf_event's type", UINT32_MAX, &type) ||
	    pc_u64(PyTuple_GET_ITEM(value, 1), "perf_event's config", &config->perf_config))
		return -1;
	config->perf_type = (uint32_t)type;
	config->has_perf_event = true;
	return 0;
}

static int parse_cpuid(PyObject *value, struct pc_vcpu_options *options)
{
	if (!value) {
		options->config.cpuid_supported = true;
		return 0;
	}
	if (value == Py_None)
		return 0;
	if (PyUnicode_Check(value)) {
		options->config.cpuid_supported =
			PyUnicode_CompareWithASCIIString(value, "supported") == 0;
		if (options->config.cpuid_supported)
			return 0;
		PyErr_Format(PyExc_ValueError,
			     "cpuid must be \"supported\", None or a table, not %R", value);
		return -1;
	}
	options->cpuid = pc_cpuid_from_python(value, &options->cpuid_count);
	return options->cpuid ? 0 : -1;
}

int pc_vcpu_options_parse(struct pc_state *state, struct pc_vcpu_options *options, PyObject *args,
			  PyObject *kwargs)
{
	static char *keywords[] = {
		"id",	     "start",	    "name",	   "queue",	 "clock",
		"host_freq", "host_factor", "time_source", "perf_event", "use_perf_overflow",
		"cpuid",     "num_threads", NULL
	};
	struct kc_vcpu_config *config = &options->config;
	PyObject *id = NULL, *name = NULL, *queue = NULL, *clock = NULL, *host_freq = NULL,
		 *event = NULL, *cpuid = NULL, *threads = NULL;
	const char *source = "auto";
	int overflow = 0;
	uint64_t count = 1;

	options->start = 1;
	config->host_factor = 1;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O$pOOOOdsOpOO:create_vcpu", keywords, &id,
					 &options->start, &name, &queue, &clock, &host_freq,
					 &config->host_factor, &source, &event, &overflow, &cpuid,
					 &threads))
		return -1;
	if (threads && pc_u64(threads, "num_threads", &count))
		return -1;
	if (count != 1) {
		PyErr_SetString(
			PyExc_ValueError,
			"num_threads must be 1: a vCPU has one hardware thread, make more vCPUs");
		return -1;
	}
	if (!(config->host_factor > 0) || !isfinite(config->host_factor)) {
		PyErr_SetString(PyExc_ValueError, "host_factor must be positive and finite");
		return -1;
	}
	config->use_perf_overflow = overflow;
	if (parse_id(id, &options->id) || parse_name(name, &config->name) ||
	    parse_queue(state, queue, &config->queue) || parse_frequency(clock, &config->clock) ||
	    parse_frequency(host_freq, &config->host_freq) ||
	    parse_source(source, &config->time_source) || parse_event(event, config))
		return -1;
	return parse_cpuid(cpuid, options);
}
