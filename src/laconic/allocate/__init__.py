"""Who gets how much: budgets, and how they are spread over layers."""
