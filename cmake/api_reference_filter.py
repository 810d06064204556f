#!/usr/bin/env python3
"""What Doxygen reads in place of a header: the same lines, with two habits of this code spelled out for it. Lines keep their numbers.

    api_reference_filter.py HEADER

- A file opens with a comment that says what it is. It becomes the file's page and, of the first type without a comment of its own (one policy, one
  file), that type's, too.
- Members that a concept asks of every policy are described here once, instead of in every policy.
"""

import re
import sys

# Declaration -> what it is, wherever it stands without a comment.
DESCRIBED = {
    # scoring: ElementwiseScoring, RowScoring
    r"operator\(\)\(Real logit\)": "The score of a logit. Asked for by ElementwiseScoring.",
    r"derivative\(Real .*\)": "d(score) / d(logit), from the logit and its score. Asked for by ElementwiseScoring.",
    r"using Row = ": "What prepare leaves for score and backward. Asked for by RowScoring.",
    r"\bprepare\(const TileT&": "Scores from the logits of one token, all lanes of the tile together. Asked for by RowScoring.",
    r"Real score\(Real logit": "One score again, from its logit and the row. Asked for by RowScoring.",
    r"static constexpr bool normalised\b": "Scores sum to 1 already.",
    r"static constexpr bool over_selected\b": "Logits are ranked, and scored among the chosen.",
    r"static constexpr bool non_negative\b": "A score is never below +0, nor -0.",
    r"static constexpr bool finite_scores\b": "Finite logits have finite scores.",
    # selection: TopKPolicy
    r"static constexpr int k = ": "K, the experts chosen per token.",
    r"\bweighting\(\) const": "How the weights follow from the chosen scores. Asked for by TopKPolicy.",
    r"void check\(const char\*": "Raises InvalidArgument, before a call does anything, where the options do not fit the number of experts. "
                                "Asked for by TopKPolicy.",
    r"void narrow\(const TileT&": "Excludes experts from one token's ranking keys, all lanes of the tile together. Asked for by TopKPolicy.",
    r"static constexpr bool replays\b": "Reads the call's replay.",
    r"static constexpr bool looks_across_tokens\b": "Has a pass over all tokens behind the per-token kernel, and needs workspace for it.",
    # balancer: LossBalancer, BiasBalancer, TokenLossBalancer
    r"static constexpr LossScope scope\b": "Which counts slope sees.",
    r"float slope\(int expert": "The slope of the loss over this expert's mean probability P; a constant to the gradient. Asked for by LossBalancer.",
    r"float next_bias\(float bias": "The expert's bias after a step with this load, summed over ranks. Asked for by BiasBalancer.",
    r"Real token_loss\(Real": "One token's loss from the log-sum-exp of its logits; the mean over tokens counts. Asked for by TokenLossBalancer.",
    r"Real token_slope\(Real": "The derivative of token_loss. Asked for by TokenLossBalancer.",
    r"static constexpr bool counts_plain_top_k\b": "slope sees the counts of an unbiased, ungrouped top-k.",
    r"using is_(idle|combination)\b": "How the library knows this type; nothing for users.",
    # Sync: SyncPolicy, SyncPolicyOn
    r"int ranks\(\) const": "The number of ranks that sum. Asked for by SyncPolicy.",
    r"int rank\(\) const": "This rank, from 0.",
    r"void start\(std::int64_t\* /": "Starts the sum of n counts over ranks; may return before it is done. Asked for by SyncPolicyOn.",
    r"void finish\(std::int64_t\* /": "Afterwards, in the order of the place, counts holds the sum. Asked for by SyncPolicyOn.",
    r"using Seconds = ": "How timeouts are given.",
    # for all of these
    r"inline constexpr \w+ \w+<[A-Z]> = ": "What the policy says.",
    r"^[A-Z]\w*\(.*\) -> [A-Z]\w*<": "The policies are deduced from values.",
    r"\bvoid append_pieces\(": "Writes the pieces of a message one behind the other.",
    # numbers: float versions say what is promised
    r"^MOEB_INLINE double \w+\(double x\)": "For checks on the CPU, by the C library.",
    r"bool is_finite\(": "Neither infinite nor NaN.",
    r"^using Key = ": "The integer type of a real type's ranking keys.",
    r"constexpr K excluded_key = ": "The key of an expert that a selection excludes: below NaN.",
    r"constexpr K nan_key = ": "The key of NaN: below every number.",
    r"Key<Real> ordered_key\(": "The ranking key of a value: a larger key ranks first.",
    # tiles: Tile
    r"int lane\(\) ": "This lane, 0 to width - 1.",
    r"V shuffle\(": "The value of another lane.",
    r"V shuffle_xor\(": "The value of the lane whose number differs in these bits.",
    r"bool any\(bool": "Whether it holds for any lane.",
    r"V maximum\(V": "The largest of all lanes' values.",
    r"V minimum\(V": "The smallest of all lanes' values.",
    r"void barrier\(\)": "Lanes wait for each other; memory they wrote is seen.",
    r"static constexpr int width = ": "Lanes of the tile.",
    r"static constexpr bool (slots_)?in_registers = ": "Slots are registers of a GPU thread: no index at run time.",
    r"static constexpr int columns = ": "Columns that a lane looks at side by side.",
    r"static constexpr int capacity = ": "Slots of a lane.",
    r"static constexpr int block_size = ": "Slots of a block.",
    r"^  int experts;": "E.",
    r"^  int lane;": "Of the tile.",
    r"constexpr int blocks\(\)": "Blocks of slots that the experts need.",
    r"constexpr int offset\(int slot\)": "The slot's expert, counted from base().",
    r"constexpr int expert\(int slot\)": "The expert of a slot; E or more for padding.",
    r"constexpr bool holds_expert\(int slot\)": "Whether a slot is no padding.",
    r"constexpr bool is_expert\(int slot": "Whether a slot is this expert's.",
    r"T values\[": "One for each slot.",
    r"T& operator\[\]\(int slot\)": "The value of a slot.",
    # presets: Model
    r"^using \w+ = Preset<(\w+),": "\\\\copydoc moe_balance::presets::\\1",
    r"static constexpr \S.* scoring\{": "The published scoring.",
    r"static constexpr \S.* top_k\{": "The published selection.",
    r"static constexpr \S.* balancer\{": "The published balancer.",
    r"static constexpr Combine<.*> balancer\{": "The published balancer.",
}
DESCRIBED = [(re.compile(pattern), text) for pattern, text in DESCRIBED.items()]
TYPE = re.compile(r"^(struct|class) \w+( :.*)?( \{|;)")


def doxygen_text(lines):
    """The opening comment as Doxygen's: nothing in it is a command or a tag, and a source starts a line of its own."""
    words = [re.sub(r"([\\@<>#&%$])", r"\\\1", line) for line in lines]
    return " ".join(("\\n " if re.match(r"Source:", word) else "") + word for word in words)


def opening(lines):
    """The lines of the comment that a file opens with, without their slashes."""
    count = next((i for i, line in enumerate(lines) if not re.match(r"//( |$)", line)), len(lines))
    return [line[2:].strip() for line in lines[:count]]


def first_line_of_declaration(lines, at):
    """A template's head may stand on lines of its own before it, outside a class a requirement that a member exists among them."""
    head = r"\s*(template <|requires)"
    if not lines[at].startswith(" "):
        head += r"|    [A-Z]::\w+;$|  }$"
    while at > 0 and re.match(head, lines[at - 1]):
        at -= 1
    return at


def has_comment(lines, at):
    return re.search(r"///|/\*\*", lines[at]) is not None or (at > 0 and re.match(r"\s*///|.*\*/$", lines[at - 1]) is not None)


def document(lines, at, text):
    """Whether this declaration had no comment and has this one now."""
    first = first_line_of_declaration(lines, at)
    if has_comment(lines, first) or has_comment(lines, at):
        return False
    lines[first] = f"/** {text} */ {lines[first]}"
    return True


def main():
    with open(sys.argv[1], encoding="utf-8") as header:
        lines = header.read().split("\n")
    about = opening(lines)
    described = not about
    for at, line in enumerate(lines):
        if TYPE.match(line) and not described:
            described = document(lines, at, doxygen_text(about))
        for pattern, text in DESCRIBED:
            found = pattern.search(line)
            if found:
                document(lines, at, found.expand(text))
                break
    if about:
        name = sys.argv[1].split("include/", 1)[-1]
        lines[0] = f"/** \\file {name} \\brief {doxygen_text(about)} */"
    sys.stdout.write("\n".join(lines))


if __name__ == "__main__":
    main()
