// SPDX-License-Identifier: MIT
/*
 * Quantities from numbers or text. Text is taken as decimal digits and scaled with integers of any length, so
 * that no rounding happens but the one at the end.
 */
#include "module.h"

#include <math.h>
#include <string.h>

#define MAX_DIGITS 100

struct unit {
	const char *name;
	const char *factor; /* decimal */
};

static const struct unit size_units[] = {
	{ "", "1" },
	{ "B", "1" },
	{ "K", "1024" },
	{ "KiB", "1024" },
	{ "KB", "1000" },
	{ "M", "1048576" },
	{ "MiB", "1048576" },
	{ "MB", "1000000" },
	{ "G", "1073741824" },
	{ "GiB", "1073741824" },
	{ "GB", "1000000000" },
	{ "T", "1099511627776" },
	{ "TiB", "1099511627776" },
	{ "TB", "1000000000000" },
	{ NULL, NULL },
};

static const struct unit frequency_units[] = {
	{ "", "1" },
	{ "Hz", "1" },
	{ "kHz", "1000" },
	{ "KHz", "1000" },
	{ "MHz", "1000000" },
	{ "GHz", "1000000000" },
	{ "THz", "1000000000000" },
	{ NULL, NULL },
};

/* In units of a second, by what they are divided: each is a power of ten. */
static const struct unit time_units[] = {
	{ "s", "1" },
	{ "ms", "1000" },
	{ "us", "1000000" },
	{ "\302\265s", "1000000" }, /* micro sign */
	{ "\316\274s", "1000000" }, /* Greek mu */
	{ "ns", "1000000000" },
	{ "ps", "1000000000000" },
	{ NULL, NULL },
};

/* Text taken apart: its digits without the point, how many follow the point, and the unit. */
struct quantity {
	char digits[MAX_DIGITS + 2];
	unsigned int fraction;
	const struct unit *unit;
};

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static const struct unit *find_unit(const struct unit *units, const char *name, size_t length,
				    bool any_case)
{
	for (; units->name; units++) {
		if (strlen(units->name) != length)
			continue;
		if (any_case ? !strncasecmp(units->name, name, length)
			     : !strncmp(units->name, name, length))
			return units;
	}
	return NULL;
}

static int take_apart(const char *text, const struct unit *units, bool any_case, struct quantity *q)
{
	size_t count = 0, length;
	bool point = false;

	q->fraction = 0;
	text += strspn(text, " \t");
	for (; is_digit(*text) || (*text == '.' && !point); text++) {
		if (*text == '.') {
			point = true;
			continue;
		}
		if (count == MAX_DIGITS)
			return -1;
		q->digits[count++] = *text;
		q->fraction += point;
	}
	q->digits[count] = '\0';
	if (!count || (point && !q->fraction))
		return -1;
	text += strspn(text, " \t");
	length = strlen(text);
	while (length && strchr(" \t", text[length - 1]))
		length--;
	q->unit = find_unit(units, text, length, any_case);
	return q->unit ? 0 : -1;
}

static PyObject *power_of_ten(unsigned int exponent)
{
	char digits[MAX_DIGITS + 2] = "1";

	memset(digits + 1, '0', exponent);
	digits[exponent + 1] = '\0';
	return PyLong_FromString(digits, NULL, 10);
}

static void cleanup_ref(PyObject **object)
{
	Py_XDECREF(*object);
}

#define auto_ref __attribute__((cleanup(cleanup_ref))) PyObject

/* The quantity as a fraction of two ints: times its unit's factor, or divided by it. */
static int as_fraction(const struct quantity *q, bool divide, PyObject **numerator,
		       PyObject **denominator)
{
	auto_ref *digits = PyLong_FromString(q->digits, NULL, 10);
	auto_ref *factor = PyLong_FromString(q->unit->factor, NULL, 10);
	auto_ref *scale = power_of_ten(q->fraction);

	if (!digits || !factor || !scale)
		return -1;
	*numerator = divide ? Py_NewRef(digits) : PyNumber_Multiply(digits, factor);
	if (!*numerator)
		return -1;
	*denominator = divide ? PyNumber_Multiply(scale, factor) : Py_NewRef(scale);
	if (!*denominator) {
		Py_CLEAR(*numerator);
		return -1;
	}
	return 0;
}

/* To 64 bits: -1 without an exception if it does not fit, with one if that cannot be told. */
static int fit(PyObject *number, uint64_t *result)
{
	*result = PyLong_AsUnsignedLongLong(number);
	if (*result != UINT64_MAX || !PyErr_Occurred())
		return 0;
	if (PyErr_ExceptionMatches(PyExc_OverflowError))
		PyErr_Clear();
	return -1;
}

kc_exit_path int pc_uint(PyObject *value, const char *name, uint64_t limit, uint64_t *number)
{
	auto_ref *index = NULL;

	if (PyLong_CheckExact(value) && !fit(value, number) && *number <= limit)
		return 0;
	if (PyBool_Check(value) || !PyIndex_Check(value)) {
		PyErr_Format(PyExc_TypeError, "%s must be an int, not %.100s", name,
			     Py_TYPE(value)->tp_name);
		return -1;
	}
	index = PyNumber_Index(value);
	if (!index)
		return -1;
	if (!fit(index, number) && *number <= limit)
		return 0;
	if (!PyErr_Occurred())
		PyErr_Format(PyExc_ValueError, "%s must be from 0 to %llu, not %R", name,
			     (unsigned long long)limit, index);
	return -1;
}

kc_exit_path int pc_u64(PyObject *value, const char *name, uint64_t *number)
{
	return pc_uint(value, name, UINT64_MAX, number);
}

static int size_from_text(PyObject *value, uint64_t *size)
{
	const char *text = PyUnicode_AsUTF8(value);
	auto_ref *numerator = NULL;
	auto_ref *denominator = NULL;
	auto_ref *quotient = NULL;
	auto_ref *remainder = NULL;
	struct quantity q;
	int whole;

	if (!text)
		return -1;
	if (take_apart(text, size_units, true, &q)) {
		PyErr_Format(PyExc_ValueError,
			     "%R is not a size: use a number of bytes, or text such as \"64KiB\", "
			     "\"16 MiB\", \"1G\"",
			     value);
		return -1;
	}
	if (as_fraction(&q, false, &numerator, &denominator))
		return -1;
	remainder = PyNumber_Remainder(numerator, denominator);
	quotient = remainder ? PyNumber_FloorDivide(numerator, denominator) : NULL;
	whole = quotient ? PyObject_Not(remainder) : -1;
	if (whole < 0)
		return -1;
	if (!whole) {
		PyErr_Format(PyExc_ValueError, "%R is not a whole number of bytes", value);
		return -1;
	}
	if (fit(quotient, size)) {
		if (!PyErr_Occurred())
			PyErr_Format(PyExc_ValueError, "%R does not fit in 64 bits", value);
		return -1;
	}
	return 0;
}

int pc_size(PyObject *value, uint64_t *size)
{
	if (PyUnicode_Check(value))
		return size_from_text(value, size);
	if (PyBool_Check(value) || !PyIndex_Check(value)) {
		PyErr_Format(
			PyExc_TypeError,
			"a size must be a number of bytes or text such as \"64KiB\", not %.100s",
			Py_TYPE(value)->tp_name);
		return -1;
	}
	return pc_u64(value, "a size", size);
}

static int frequency_from_text(PyObject *value, double *hz)
{
	const char *text = PyUnicode_AsUTF8(value);
	auto_ref *numerator = NULL;
	auto_ref *denominator = NULL;
	auto_ref *quotient = NULL;
	struct quantity q;

	if (!text)
		return -1;
	if (take_apart(text, frequency_units, false, &q)) {
		PyErr_Format(PyExc_ValueError,
			     "%R is not a frequency: use a number of Hz, or text such as \"2GHz\", "
			     "\"1.5 MHz\", \"100Hz\"",
			     value);
		return -1;
	}
	if (as_fraction(&q, false, &numerator, &denominator))
		return -1;
	quotient = PyNumber_TrueDivide(numerator, denominator);
	if (!quotient)
		return -1;
	*hz = PyFloat_AsDouble(quotient);
	return *hz == -1.0 && PyErr_Occurred() ? -1 : 0;
}

int pc_frequency(PyObject *value, double *hz)
{
	if (PyUnicode_Check(value)) {
		if (frequency_from_text(value, hz))
			return -1;
	} else if (PyBool_Check(value)) {
		PyErr_SetString(PyExc_TypeError,
				"a frequency must be a number of Hz or text, not bool");
		return -1;
	} else {
		*hz = PyFloat_AsDouble(value);
		if (*hz == -1.0 && PyErr_Occurred()) {
			if (!PyErr_ExceptionMatches(PyExc_OverflowError))
				return -1;
			PyErr_Clear();
			*hz = INFINITY;
		}
	}
	if (isfinite(*hz) && *hz > 0)
		return 0;
	PyErr_Format(PyExc_ValueError, "a frequency must be positive and finite, not %R", value);
	return -1;
}

/* numerator / denominator to the nearest int, halves to the even one. */
static PyObject *round_fraction(PyObject *numerator, PyObject *denominator)
{
	auto_ref *both = PyNumber_Divmod(numerator, denominator);
	auto_ref *twice = NULL;
	auto_ref *one = PyLong_FromLong(1);
	auto_ref *odd = NULL;
	PyObject *quotient, *remainder;
	int more, half, is_odd;

	if (!both || !one)
		return NULL;
	quotient = PyTuple_GET_ITEM(both, 0);
	remainder = PyTuple_GET_ITEM(both, 1);
	twice = PyNumber_Add(remainder, remainder);
	odd = PyNumber_And(quotient, one);
	if (!twice || !odd)
		return NULL;
	more = PyObject_RichCompareBool(twice, denominator, Py_GT);
	half = PyObject_RichCompareBool(twice, denominator, Py_EQ);
	is_odd = PyObject_IsTrue(odd);
	if (more < 0 || half < 0 || is_odd < 0)
		return NULL;
	if (more || (half && is_odd))
		return PyNumber_Add(quotient, one);
	return Py_NewRef(quotient);
}

static int ticks_from_text(PyObject *value, uint64_t tick_frequency, uint64_t *ticks)
{
	const char *text = PyUnicode_AsUTF8(value);
	auto_ref *numerator = NULL;
	auto_ref *denominator = NULL;
	auto_ref *frequency = PyLong_FromUnsignedLongLong(tick_frequency);
	auto_ref *product = NULL;
	auto_ref *rounded = NULL;
	struct quantity q;

	if (!text || !frequency)
		return -1;
	if (take_apart(text, time_units, false, &q)) {
		PyErr_Format(PyExc_ValueError,
			     "%R is not a time: use a number of ticks, or text such as \"10ms\", "
			     "\"1.5us\", \"3s\", \"250ps\"",
			     value);
		return -1;
	}
	if (as_fraction(&q, true, &numerator, &denominator))
		return -1;
	product = PyNumber_Multiply(numerator, frequency);
	rounded = product ? round_fraction(product, denominator) : NULL;
	if (!rounded)
		return -1;
	if (fit(rounded, ticks)) {
		if (!PyErr_Occurred())
			PyErr_Format(PyExc_ValueError, "%R does not fit in 64 bits of ticks",
				     value);
		return -1;
	}
	return 0;
}

kc_exit_path int pc_ticks(PyObject *value, uint64_t tick_frequency, uint64_t *ticks)
{
	if (PyUnicode_Check(value))
		return ticks_from_text(value, tick_frequency, ticks);
	if (!PyLong_CheckExact(value) && (PyBool_Check(value) || !PyIndex_Check(value))) {
		PyErr_Format(
			PyExc_TypeError,
			"a time must be a number of ticks or text such as \"10ms\", not %.100s",
			Py_TYPE(value)->tp_name);
		return -1;
	}
	return pc_u64(value, "a time in ticks", ticks);
}

/* ---- the module's functions ---- */

static PyObject *parse_size(PyObject *module, PyObject *value)
{
	uint64_t size;

	(void)module;
	if (pc_size(value, &size))
		return NULL;
	return PyLong_FromUnsignedLongLong(size);
}

static PyObject *parse_frequency(PyObject *module, PyObject *value)
{
	double hz;

	(void)module;
	if (pc_frequency(value, &hz))
		return NULL;
	return PyFloat_FromDouble(hz);
}

static PyObject *parse_ticks(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
	uint64_t tick_frequency = 1000000000000, ticks;

	(void)module;
	if (nargs < 1 || nargs > 2) {
		PyErr_Format(PyExc_TypeError, "parse_ticks() takes 1 or 2 arguments, not %zd",
			     nargs);
		return NULL;
	}
	if (nargs > 1 && pc_u64(args[1], "the tick frequency", &tick_frequency))
		return NULL;
	if (!tick_frequency) {
		PyErr_SetString(PyExc_ValueError, "the tick frequency must be at least 1 Hz");
		return NULL;
	}
	if (pc_ticks(args[0], tick_frequency, &ticks))
		return NULL;
	return PyLong_FromUnsignedLongLong(ticks);
}

static PyMethodDef functions[] = {
	{ "parse_size", parse_size, METH_O, DOC_parse_size },
	{ "parse_frequency", parse_frequency, METH_O, DOC_parse_frequency },
	{ "parse_ticks", (PyCFunction)(void (*)(void))parse_ticks, METH_FASTCALL, DOC_parse_ticks },
	{ NULL, NULL, 0, NULL },
};

int pc_units_init(PyObject *module)
{
	return PyModule_AddFunctions(module, functions);
}
