"""Varied text for measurements. Repetitive or random tokens are routed unlike text and give wrong hit rates."""

from __future__ import annotations

PROMPTS = (
    "A kettle of cold water stands on the stove. Explain, step by step and in plain words, what happens to the water "
    "from the moment the flame is lit until steam lifts the lid, and where the energy goes.",
    "Write a Python function that reads a CSV file of bank transactions, groups them by month and category, and prints "
    "the three categories with the largest change from one month to the next.",
    "My grandmother left me a recipe that says only: flour, butter, a little sugar, bake until it smells right. Guess "
    "what it makes, and write the recipe out properly with quantities, times and temperatures.",
    "Two trains leave cities that are 420 kilometres apart at the same time, one at 80 and the other at 60 kilometres "
    "per hour. When do they meet, and how far has each of them gone? Show the calculation.",
    "Compare the way bees and ants find food and tell their nest mates about it. What can each of them say, and what "
    "can they not?",
    "Translate into French and then into German: The last ferry leaves at nine, so please finish your soup and put on "
    "your coat; the captain does not wait for anybody.",
    "A small town wants to close its main street to cars on Saturdays. Give the strongest argument of a shopkeeper who "
    "is against it and of a parent who is for it, and propose a trial that both could accept.",
    "Describe the causes of the First World War to a twelve-year-old in two hundred words, without naming more than "
    "five people.",
    "Here is a proof that every even number above two is the sum of two primes: start with four, and go on. What is "
    "wrong with it? What would a real proof have to do?",
    "Fix this SQL query, which should list customers without an order in the last year but returns nobody: SELECT name "
    "FROM customers JOIN orders ON customers.id = orders.customer WHERE orders.day IS NULL;",
    "The patient reports a dull ache behind the left knee that began after a long flight. List what a careful doctor "
    "would ask next, and say which answers would make it urgent.",
    "Write the opening paragraph of a detective story that takes place in a lighthouse during a storm, told by the "
    "lighthouse keeper's daughter, who already knows who did it.",
    "What is the difference between a mutex, a semaphore and a condition variable? Give one example where using the "
    "wrong one of them works in testing and fails in production.",
    "Plan three days in a city by the sea for a family with a toddler and a grandfather who walks slowly. It rains on "
    "the second day. Keep the budget below three hundred euros.",
    "Haiku are short. Write four of them, one for each season, about the same old apple tree, and let the last one "
    "answer the first.",
    "Why do some metals rust and others do not? Explain what zinc does on a steel bucket, and why a scratch does not "
    "spoil the effect at once.",
)
