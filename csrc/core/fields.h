/* SPDX-License-Identifier: MIT */
/* Registers and exits are tables: named fields of a structure, which dumps and bindings walk. */
#ifndef KC_FIELDS_H
#define KC_FIELDS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum kc_field_kind {
	KC_FIELD_UINT, /* size bytes, 1 to 8, little-endian */
	KC_FIELD_WIDE, /* size bytes, more than 8, as one number */
	KC_FIELD_SPLIT, /* a number in two halves: size bytes at offset, size at high */
	KC_FIELD_STRUCT, /* another structure: .fields */
	KC_FIELD_END, /* ends a table */
};

struct kc_field {
	const char *name;
	enum kc_field_kind kind;
	uint32_t offset, size;
	uint32_t high; /* KC_FIELD_SPLIT: where its upper half is, relative to kc_arch_split_offset() */
	const struct kc_field *fields; /* KC_FIELD_STRUCT */
	const char *type; /* KC_FIELD_STRUCT: the structure's public name */
};

#define KC_FIELD(structure, member)                                                                 \
	{ #member, KC_FIELD_UINT, offsetof(structure, member), sizeof(((structure *)0)->member), 0, \
	  NULL,	   NULL }
#define KC_FIELD_AS(name, structure, member)                                                       \
	{ name, KC_FIELD_UINT, offsetof(structure, member), sizeof(((structure *)0)->member), 0,   \
	  NULL, NULL }
#define KC_FIELD_NESTED(structure, member, table, type)                                            \
	{ #member,                                                                                 \
	  KC_FIELD_STRUCT,                                                                         \
	  offsetof(structure, member),                                                             \
	  sizeof(((structure *)0)->member),                                                        \
	  0,                                                                                       \
	  table,                                                                                   \
	  type }
#define KC_FIELDS_END { NULL, KC_FIELD_END, 0, 0, 0, NULL, NULL }

/*
 * A field's bytes, little-endian, out of or into the structure at data; split: kc_arch_split_offset(). Returns
 * how many they are; 0: the processor does not have the field.
 */
#define KC_FIELD_BYTES 64
size_t kc_field_get(const struct kc_field *field, const void *data, size_t split, uint8_t *bytes);
size_t kc_field_put(const struct kc_field *field, void *data, size_t split, const uint8_t *bytes);
/* As a person reads it: hex of the field's width, or just the number where that is a byte. */
#define KC_FIELD_TEXT (2 * KC_FIELD_BYTES + 3)
void kc_field_format(const uint8_t *bytes, size_t size, char *text);
/* All fields of a structure, aligned, in lines of 100 columns at most but for nested structures. */
void kc_fields_print(FILE *out, const struct kc_field *fields, const void *data, size_t split,
		     const char *indent);
/* The same in one line. */
void kc_fields_print_line(FILE *out, const struct kc_field *fields, const void *data, size_t split);

#endif
