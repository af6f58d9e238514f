//! How many drafted tokens stand, and what follows them. Nothing here goes to the host: lengths and
//! the next chain move on in device memory.
const std = @import("std");
const types = @import("../../abi/types.zig");
const simd = @import("../simd.zig");
const kernel_mod = @import("../kernel.zig");
const distribution = @import("distribution.zig");
const philox = @import("philox.zig");
const race_mod = @import("race.zig");

const Distribution = distribution.Distribution;
const run_entries = distribution.run_entries;

pub const accept: kernel_mod.Kernel = kernel_mod.kernel(types.AcceptDesc, &.{Decide});

/// One item a sequence: its positions are decided in order, and most are never looked at.
const Decide = struct {
    pub fn plan(desc: *types.AcceptDesc, _: u32) u32 {
        return desc.chain.shape[0];
    }

    pub fn run(desc: *const types.AcceptDesc, s: u32, scratch: *const kernel_mod.Scratch) void {
        const g = desc.chain.shape[1] - 2;
        const chain = kernel_mod.pointer(i32, desc.chain) + @as(usize, s) * (g + 2);
        const emitted = (kernel_mod.pointer(i32, desc.out) + @as(usize, s) * (g + 1))[0 .. g + 1];
        const count = &kernel_mod.pointer(i32, desc.count)[s];
        @memset(emitted, -1);
        count.* = 0;
        if (kernel_mod.pointer(i32, desc.active)[s] == 0) return;

        const n = switch (desc.rule) {
            .match => match(desc, s, chain[2 .. g + 2], emitted),
            .rejection => reject(desc, s, chain[2 .. g + 2], emitted, scratch),
        };
        count.* = @intCast(n);
        kernel_mod.pointer(i32, desc.lens)[s] += @intCast(n);
        chain[0] = if (n >= 2) emitted[n - 2] else chain[1];
        chain[1] = emitted[n - 1];
    }
};

/// Drafts stand while they are what the target chose; the target's next choice follows. Returns the
/// number emitted.
fn match(desc: *const types.AcceptDesc, s: u32, drafts: []const i32, emitted: []i32) usize {
    const chosen = kernel_mod.pointer(i32, desc.target_tokens) + s * emitted.len;
    var n: usize = 1;
    for (drafts, 0..) |draft, j| {
        if (draft != chosen[j]) break;
        n += 1;
    }
    @memcpy(emitted[0..n], chosen[0..n]);
    return n;
}

/// Rejection sampling (Leviathan et al. 2211.17192, Chen et al. 2302.01318): draft d stands with
/// probability min(1, p(d) / q(d)); the first that does not is replaced by a draw from max(p - q,
/// 0), and where all stand the target's own draw follows. The accept test and the draw have streams
/// of their own: the draft's noise is what made d likely, and used again it would bias the
/// replacement.
fn reject(
    desc: *const types.AcceptDesc,
    s: u32,
    drafts: []const i32,
    emitted: []i32,
    scratch: *const kernel_mod.Scratch,
) usize {
    const v = desc.target_logits.shape[1];
    const params = &kernel_mod.pointer(types.SamplingParams, desc.params)[s];
    const logits = kernel_mod.pointer(f32, desc.target_logits) + s * emitted.len * v;
    const len = kernel_mod.pointer(i32, desc.lens)[s];
    for (drafts, 0..) |draft, j| {
        const position = len + 1 + @as(i32, @intCast(j));
        const q = kernel_mod.pointer(f32, desc.draft_probs) + (s * drafts.len + j) * v;
        var p: Distribution = .init(logits + j * v, v, params, scratch);
        p.normalise();
        if (stands(&p, q, @bitCast(draft), .init(params, .accept, position))) {
            emitted[j] = draft;
            continue;
        }
        emitted[j] = @intCast(drawResidual(&p, q, .init(params, .recovery, position)));
        return j + 1;
    }
    const g = drafts.len;
    const bonus: Distribution = .init(logits + g * v, v, params, scratch);
    const position = len + 1 + @as(i32, @intCast(g));
    emitted[g] = @intCast(bonus.draw(.init(params, .recovery, position)));
    return g + 1;
}

/// u < p / q without the division.
fn stands(p: *const Distribution, q: [*]const f32, draft: u32, noise: philox.Noise) bool {
    if (draft >= p.v) return false;
    const kept = p.probability(draft);
    if (p.point or kept >= q[draft]) return kept > 0;
    return race_mod.uniformScalar(noise.word()) * q[draft] < kept;
}

/// A token from max(p - q, 0), or from p where the two are equal but for rounding.
fn drawResidual(p: *const Distribution, q: [*]const f32, noise: philox.Noise) u32 {
    if (p.point) return p.mode;
    var race: race_mod.Race = .{ .noise = noise };
    var base: u32 = 0;
    while (base < p.v) : (base += run_entries) {
        var run = p.probabilities(base);
        for (&run, distribution.loadRun(q, p.v, base)) |*x, q_run| {
            // Past the end q is -inf: nothing may be left there.
            const rest = @select(f32, x.* > simd.splat(0), x.* - q_run, simd.splat(0));
            const some = rest >= simd.splat(std.math.floatMin(f32));
            const none = simd.splat(-std.math.inf(f32));
            x.* = @select(f32, some, race_mod.log2(rest), none);
        }
        race.offer(base, &run);
    }
    return if (race.token == race_mod.Race.none) p.draw(noise) else race.token;
}

test {
    _ = @import("../../tests/rejection_test.zig");
}
