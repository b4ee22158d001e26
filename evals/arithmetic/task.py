"""Word problems answered in free text, which ends with the number. The prompt `brief` asks for the number alone.

llmkit eval run evals/arithmetic/task.py --routes ollama/llama3.2,ollama/llama3.2@brief --name arithmetic --epochs 3
"""

from llmkit.evals import Task, majority, number_match

STEPS = """\
Solve the problem step by step. Put the result on a line of its own at the end: #### and the number.

Problem: A hall has 9 rows of 14 seats, and 20 seats are taken. How many are free?
Seats: 9 * 14 = 126. Free: 126 - 20 = 106.
#### 106

Problem: {input}
"""

BRIEF = """\
Solve the problem. Answer with the number alone.

Problem: {input}
Answer:"""

task = Task(
    name="arithmetic",
    dataset="arithmetic.jsonl",
    input="question",
    target="answer",
    prompt=STEPS,
    output_type=str,
    scorers=[number_match(), majority(read="number")],
    prompts={"brief": BRIEF},
    parameters={"temperature": 0.7, "max_output_tokens": 300, "stop": ["\nProblem:"]},
    description="Word problems answered in free text, which ends with the number.",
)
