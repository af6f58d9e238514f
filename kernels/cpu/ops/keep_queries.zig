//! Keeps the last queries of each sequence in a ring, for SnapKV's scores.
const types = @import("../../abi/types.zig");
const kernel_mod = @import("../kernel.zig");

const Desc = types.KeepQueriesDesc;

pub const keep_queries: kernel_mod.Kernel = kernel_mod.kernel(Desc, &.{Sequences});

/// One item a sequence. Of rows that fall into the same slot only the last position is copied, so
/// that a prefill longer than the ring neither races nor depends on the order of rows.
const Sequences = struct {
    pub fn plan(desc: *Desc, _: u32) u32 {
        return if (desc.q.shape[0] == 0) 0 else desc.out.shape[0];
    }

    pub fn run(desc: *const Desc, item: u32, _: *const kernel_mod.Scratch) void {
        const rows = desc.q.shape[0];
        const ring = desc.out.shape[1];
        const row_elements = @as(usize, desc.q.shape[1]) * desc.q.shape[2];
        const row_seq = kernel_mod.pointer(i32, desc.row_seq)[0..rows];
        const positions = kernel_mod.pointer(i32, desc.positions)[0..rows];
        var last: i64 = -1;
        for (row_seq, positions) |sequence, position| {
            if (sequence == item) last = @max(last, position);
        }
        const q = kernel_mod.pointer(u16, desc.q);
        const out = kernel_mod.pointer(u16, desc.out) + item * ring * row_elements;
        for (row_seq, positions, 0..) |sequence, position, row| {
            if (sequence != item or position <= last - ring) continue;
            const slot = @as(u32, @intCast(position)) % ring;
            const kept = q[row * row_elements ..][0..row_elements];
            @memcpy(out[slot * row_elements ..][0..row_elements], kept);
        }
    }
};
