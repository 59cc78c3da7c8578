"""Any base and fine-tuned model beside each other: two models in, records, verdicts and a report out."""
