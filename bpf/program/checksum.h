/* One's complement sums (RFC 1071) and their incremental change (RFC 1624, equation 3).
 *
 * A delta is added to the complement of a checksum: it is the sum of all new 16-bit words and of the complements of the
 * old ones. Words are summed in memory order; the sum is independent of byte order if all words use the same.
 */
#pragma once

static __always_inline u16 fold(u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline u32 sum_words(const __be32 *words, const u32 count)
{
	u32 sum = 0;

#pragma unroll
	for (u32 i = 0; i < count; i++)
		sum += (words[i] & 0xffff) + (words[i] >> 16);
	return sum;
}

/* The delta of replacing words that sum to `before` by words that sum to `after`. */
static __always_inline u16 difference(u32 before, u32 after)
{
	return fold((u16)~fold(before) + (u32)fold(after));
}

static __always_inline u16 changed_checksum(u16 check, u32 delta)
{
	return ~fold((u16)~check + delta);
}

/* For a TCP or UDP checksum: a UDP checksum of 0 (not computed) is kept, and a computed 0 is written as 0xffff (RFC 768). */
static __always_inline u16 changed_transport_checksum(u16 check, u32 delta, u8 protocol)
{
	u16 changed;

	if (protocol != IPPROTO_UDP)
		return changed_checksum(check, delta);
	if (check == 0)
		return 0;
	changed = changed_checksum(check, delta);
	return changed ? changed : 0xffff;
}
