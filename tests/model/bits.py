"""The bits of the maps' fields as plain numbers: enum arithmetic costs a quarter of the model's time."""

from __future__ import annotations

from bpf.constants import AffinityFlag, FarmFlag, FlowFlag, FlowState, ServerFlag, VipFlag

# of Flow.flags
FORWARD, DERIVED, DSR, IPIP, OTHER_FAMILY, TOA = (
    int(FlowFlag[name]) for name in ("FORWARD", "DERIVED", "DSR", "IPIP", "OTHER_FAMILY", "TOA")
)

# of Flow.state
SEEN, FIN_HERE, FIN_THERE, RESET, REPLICATED, COUNTED, TOA_DONE = (
    int(FlowState[name]) for name in ("SEEN", "FIN_HERE", "FIN_THERE", "RST", "REPLICATED", "COUNTED", "TOA_DONE")
)
ENDS = FIN_HERE | FIN_THERE

# of VIPs, backends' services, farms and their affinity
VIP_OPEN, VIP_RANGES = int(VipFlag.OPEN), int(VipFlag.RANGES)
SERVER_DNAT = int(ServerFlag.DNAT)
FARM_SILENT, FARM_TOA = int(FarmFlag.SILENT), int(FarmFlag.TOA)
PERSISTENCE_RETURNS = int(AffinityFlag.RETURN)
