/* CONTINUE, or the verdict on a packet that arrived without the lease.
 *
 * After a hand-over the kernel forwards packets for a VIP to the peer, and queues them until the peer has announced itself.
 * A reply to a client (mode dnat) has no VIP as its destination and is dropped.
 */
static __always_inline u32 fence_FAM(struct packet *packet, struct addr_FAM *destination)
{
	u32 verdict = check_lease(packet);

	if (verdict == COUNTER_PASS_HANDED_OVER && !vips_FAM.lookup((struct vip_key_FAM *)destination))
		return COUNTER_DROP_FENCED;
	return verdict;
}
