r"""Rewards beyond right or wrong: two penalties for length, and which groups are worth training on.

A verifier gives 1 for a right answer and 0 for a wrong one (reward_math.py). The functions here add to that reward, or
choose the responses to train on:

    mixed_groups       keep the groups that are neither all right nor all wrong      DAPO, arXiv 2503.14476; RPG too
    bounded_groups     keep the groups whose mean reward lies between two bounds     OpenKimi
    overlong_penalty   falls to -1 near the longest possible response                DAPO
    length_reward      between -0.5 and 0.5; the shortest of the group gets most     Kimi k1.5, arXiv 2501.12599, 2.3

In a group whose rewards are all equal, every group baseline gives exact zeros, so there is no gradient. DAPO and RPG
drop such groups and sample more. REINFORCE++ has no group baseline and does learn from them.

Lengths count tokens. Arguments are [N], group after group, and group_size divides N; ValueError otherwise.

Departures, and why:
- overlong_penalty is DAPO's function for rewards of 1 and -1. The rewards here are 1 and 0, half as far apart. Added as
  it is, the penalty weighs twice as much. Half of it has DAPO's proportion; train.py adds half.

`python rewards.py` prints one group with its rewards, by length, in both proportions.
"""
import torch


def mixed_groups(correct, group_size):
    r"""Which responses to keep: those of groups neither all right nor all wrong (DAPO, arXiv 2503.14476; RPG too).

    correct [N] bool or number -> [N] bool, the same within a group.
    [1, 0, 0, 0] with group_size 2 gives [True, True, False, False].
    Pass the verifier's verdict, without shaping. With a length penalty, groups of equal answers would differ too.
    """
    if correct.dim() != 1 or group_size < 1 or len(correct) % group_size:
        raise ValueError("correct must be [N] with N a multiple of group_size")
    groups = correct.reshape(-1, group_size)  # [P, G]
    return (groups != groups[:, :1]).any(dim=1).repeat_interleave(group_size)  # [N]


def bounded_groups(rewards, group_size, lower, upper):
    r"""OpenKimi's reward bounds: keep a prompt only if lower < mean reward of its group < upper; off by default there.

    rewards [N], group after group, bounds in units of reward -> [N] bool, the same within a group.
    [1, 1, -1, 1] with group_size 2 and bounds -1 and 1 gives [False, False, True, True].
    -1 and 1 drop all wrong and all right only for rewards of +-1. For rewards 0 and 1 the lower bound must be 0: with
    -1 the groups that are all wrong stay.
    OpenKimi gives dropped prompts the weight 0 and leaves them in the denominator of the mean, so its step is smaller.
    ValueError for groups that do not divide.
    """
    if rewards.dim() != 1 or group_size < 1 or len(rewards) % group_size:
        raise ValueError("rewards must be [N] with N a multiple of group_size, got "
                         f"{tuple(rewards.shape)} and {group_size}")
    r = rewards.to(torch.promote_types(rewards.dtype, torch.float32)).reshape(-1, group_size)  # [P, G]
    # The mean of eight float32 0.7 is not 0.7. Counting from the lowest makes the mean of equal rewards that reward.
    lowest = r.amin(dim=1, keepdim=True)  # [P, 1]
    mean = (lowest + (r - lowest).mean(dim=1, keepdim=True)).squeeze(1)  # [P]
    return ((lower < mean) & (mean < upper)).repeat_interleave(group_size)  # [N]


def overlong_penalty(lengths, max_new_tokens, buffer):
    r"""DAPO's penalty for responses near the limit, to be added to the rewards (arXiv 2503.14476).

    0 up to max_new_tokens - buffer, then falling linearly to -1 at max_new_tokens, -1 beyond.
    lengths [N] in tokens -> [N] float32. max_new_tokens 100, buffer 20: 80 gives 0, 85 gives -0.25.

    DAPO's rewards are 1 and -1, so a right answer at the limit keeps 1 - 1 = 0 and a short wrong one has -1. With
    rewards of 1 and 0 the whole penalty leaves 1 - 1 = 0 for both: being right is then worth nothing at the limit.
    Half the penalty has DAPO's proportion: 0.5 against 0. DAPO's buffer is a fifth of the limit, 4096 of 20480 tokens.
    ValueError unless 0 < buffer <= max_new_tokens.
    """
    if not 0 < buffer <= max_new_tokens:
        raise ValueError(f"buffer must be positive and at most max_new_tokens = {max_new_tokens}, got {buffer}")
    return ((max_new_tokens - buffer - lengths.float()) / buffer).clamp(-1, 0)


def length_reward(correct, lengths, group_size):
    r"""Kimi k1.5's reward for being short, to be added to the rewards (arXiv 2501.12599, section 2.3).

        lambda = 0.5 - (len - min) / (max - min)    over the group
        lambda where right, min(0, lambda) where wrong, 0 everywhere if all lengths are equal

    correct [N] bool or number, non-zero where right; lengths [N] -> [N] float32, in units of reward.
    Lengths 10, 20, 30 with the last wrong: 0.5, 0, -0.5. A short wrong answer gains nothing.
    """
    if lengths.dim() != 1 or correct.shape != lengths.shape or group_size < 1 or len(lengths) % group_size:
        raise ValueError("correct and lengths must be [N] with N a multiple of group_size")
    length = lengths.float().reshape(-1, group_size)  # [P, G]
    shortest, longest = length.amin(dim=1, keepdim=True), length.amax(dim=1, keepdim=True)  # [P, 1]

    lam = 0.5 - (length - shortest) / (longest - shortest).clamp(min=1)  # [P, G]
    lam = torch.where(longest > shortest, lam, 0.0).reshape(-1)  # [N]
    return torch.where(correct.bool(), lam, lam.clamp(max=0))  # [N]


def main():
    lengths = torch.tensor([20, 85, 90, 95, 100, 20, 90, 100])
    correct = torch.tensor([1, 1, 1, 1, 1, 0, 0, 0])
    penalty = overlong_penalty(lengths, 100, 20)  # [N]
    columns = {
        "1 or -1, DAPO": 2 * correct - 1 + penalty,
        "1 or 0, whole": correct + penalty,
        "1 or 0, half": correct + penalty / 2,
        "1 or 0, k1.5": correct + length_reward(correct, lengths, 8),
    }
    print("Rewards of one group of 8, at most 100 tokens: with DAPO's penalty (buffer 20), with k1.5's length reward\n")
    print(f"{'tokens':>8s}{'right':>8s}{'penalty':>10s}" + "".join(f"{name:>16s}" for name in columns))
    for i, (length, right) in enumerate(zip(lengths.tolist(), correct.tolist())):
        print(f"{length:8d}{'yes' if right else 'no':>8s}{penalty[i]:10.2f}"
              + "".join(f"{rewards[i]:16.2f}" for rewards in columns.values()))
    print("\nGroups of two, right or not, and whether they are kept:")
    for group in ([1, 1], [1, 0], [0, 0]):
        print(f"  {group}  {'kept' if mixed_groups(torch.tensor(group), 2).all() else 'dropped'}")


if __name__ == "__main__":
    main()
