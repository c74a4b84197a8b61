"""The 13 wordings of prompt augmentation, by name."""

from __future__ import annotations

from trainer.template import PLAIN, Template

THINK = ("<think>", "</think>")
ANSWER = ("<answer>", "</answer>")
BOX = ("\\boxed{",)

WORDINGS: dict[str, Template] = {
    "plain": PLAIN,
    "boxed": Template("{prompt}\n\nWork it out and put what you end with into \\boxed{}.", asks=BOX),
    "steps": Template("{prompt}", opening="Let us go through this one step at a time.\n"),
    "steps_boxed": Template(
        "{prompt}\n\nGive the result in \\boxed{}.", opening="Let us go through this one step at a time.\n", asks=BOX
    ),
    "think_tags": Template(
        "{prompt}",
        system="You first reason between <think> and </think>, then give the result between <answer> and </answer>.",
        opening="<think>\n",
        asks=THINK + ANSWER,
    ),
    "think_boxed": Template(
        "{prompt}",
        system="Your reasoning stands between <think> and </think>; behind it you write the result in \\boxed{}.",
        opening="<think>\n",
        asks=THINK + BOX,
    ),
    "instruction_first": Template(
        "Below is a problem. Solve it, show how you got there, and finish with a line that begins with ####, followed "
        "by the result alone.\n\n{prompt}",
        asks=("####",),
    ),
    "teacher": Template(
        "A student asks:\n\n{prompt}\n\nExplain the solution so that the student can follow, and end with "
        '"The answer is" and the result.',
        system="You are a patient teacher.",
        asks=("The answer is",),
    ),
    "plan": Template(
        "{prompt}\n\nWrite a short plan under the heading Plan:, carry it out under Solution:, and state the result "
        "under Answer:.",
        opening="Plan:\n",
        asks=("Plan:", "Solution:", "Answer:"),
    ),
    "check": Template(
        "{prompt}\n\nSolve it, then go over your solution under the heading Check: and correct what is wrong. Give the "
        "final result in \\boxed{}.",
        asks=("Check:", *BOX),
    ),
    "dialogue": Template("Question: {prompt}\nAnswer: ", system="Careful answers to questions, each with its reasons."),
    "scratchpad": Template(
        "{prompt}",
        system="Use a scratchpad between <scratchpad> and </scratchpad> for everything you try. Then give the result "
        "between <answer> and </answer>.",
        opening="<scratchpad>\n",
        asks=("<scratchpad>", "</scratchpad>", *ANSWER),
    ),
    "facts": Template(
        "{prompt}\n\nBegin with Given: and what is known, go on with Wanted: and what is asked, then derive the result "
        "and put it into \\boxed{}.",
        opening="Given:\n",
        asks=("Given:", "Wanted:", *BOX),
    ),
}
